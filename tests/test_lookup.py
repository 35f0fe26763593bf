"""What is proposed from a text itself, against the definition."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.core.lookup import CANDIDATES, FIRST_ODDS, FOLLOWED, MAX_MATCH, MIN_MATCH, Lookup


def match(ids: list[int], place: int) -> int:
    """How many tokens before ``place`` equal those at the end of ``ids``."""
    found = 0
    while found < min(place, MAX_MATCH) and ids[place - found - 1] == ids[-found - 1]:
        found += 1
    return found


def by_definition(ids: list[int], count: int) -> list[int]:
    """What follows the longest match, the latest of those alike, among the latest that match at all."""
    places = [place for place in range(MIN_MATCH, len(ids)) if match(ids, place) >= MIN_MATCH]
    if not places:
        return []
    best = max(places[-CANDIDATES:], key=lambda place: (match(ids, place), place))
    text = [*ids]
    for n in range(count):
        text.append(text[best + n])
    return text[len(ids) :]


def looked_up(ids: list[int], count: int = 16) -> list[int]:
    lookup = Lookup()
    lookup.update(ids, len(ids))
    return lookup.propose(ids, count, 0.0)[0]


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 20))
def test_of_a_whole_text(ids: list[int], count: int) -> None:
    assert looked_up(ids, count) == by_definition(ids, count)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(1, 5), st.integers(0, 20))
def test_while_a_text_grows(ids: list[int], parts: int, prompt: int) -> None:
    """However it comes, what is proposed has followed a match; one of some length is not left for another."""
    lookup, text = Lookup(), ids[:prompt]
    lookup.update(text, len(text))
    while len(text) < len(ids):
        text += ids[len(text) : len(text) + parts]
        lookup.update(text, prompt)
        drafts, odds = lookup.propose(text, 6, 0.0)
        assert len(drafts) == len(odds)
        assert all(later <= earlier for earlier, later in itertools.pairwise(odds))
        definition = by_definition(text, 6)
        assert bool(drafts) == bool(definition)
        if drafts and lookup._match < FOLLOWED:
            assert drafts == definition
        if drafts:
            assert lookup._next is not None
            assert match(text, lookup._next) >= min(lookup._match, MAX_MATCH) >= MIN_MATCH


def test_a_period_goes_on() -> None:
    assert looked_up([9, 1, 2, 3, 1, 2, 3, 1, 2], 10) == [3, 1, 2, 3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 2, 3, 4, 5]])
def test_nothing_repeats(ids: list[int]) -> None:
    assert looked_up(ids) == []


def test_odds_follow_what_comes() -> None:
    """They rise where a text repeats and fall where it seems to; nothing has to be tried for that."""
    lookup, ids = Lookup(), [1, 2, 3, 4] * 20
    for end in range(len(ids)):
        lookup.update(ids[: end + 1], 0)
    assert lookup.propose(ids, 4, 0.0)[1][-1] > 0.9
    pick = random.Random(0)
    lookup, ids = Lookup(), []
    for _ in range(400):
        ids.append(pick.randrange(4))
        lookup.update(ids, 0)
    assert max(lookup._odds[:3]) < 0.6
    assert all(0 <= odds <= 1 for odds in lookup._odds)


def test_a_prompt_says_nothing_of_the_odds() -> None:
    lookup, ids = Lookup(), [1, 2, 3, 4] * 20
    lookup.update(ids, len(ids))
    assert lookup._odds == [*FIRST_ODDS]


def test_what_is_unlikely_is_left_out() -> None:
    lookup, ids = Lookup(), [7, 8, 1, 2, 3, 4, 5, 7, 8]
    lookup.update(ids, len(ids))
    drafts, odds = lookup.propose(ids, 5, 0.0)
    assert drafts == [1, 2, 3, 4, 5] and odds[0] == FIRST_ODDS[0]
    assert lookup.propose(ids, 5, FIRST_ODDS[0])[0] == [1]
    assert lookup.propose(ids, 5, 0.5) == ([], [])
