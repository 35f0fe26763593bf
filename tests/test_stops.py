"""Stop strings, however the text is cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.text.stops import StopMatcher


def run(stops: Sequence[str], chunks: Sequence[str]) -> tuple[str, bool]:
    """All that is passed on, and whether a stop was met."""
    matcher = StopMatcher(stops)
    passed = "".join(map(matcher.push, chunks))
    return passed + matcher.flush(), matcher.stopped


def definition(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """The match that is complete first wins; of two complete at once, the longer."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def every_cut(text: str) -> list[list[str]]:
    """The text whole, by characters, and in two pieces everywhere."""
    return [[text], list(text), *([text[:n], text[n:]] for n in range(len(text) + 1))]


@pytest.mark.parametrize(
    ("stops", "text", "passed"),
    [
        (["aab"], "aaab", "a"),
        (["ab"], "ab", ""),
        (["ab"], "abab", ""),
        (["a"], "xa", "x"),
        (["abab"], "abaabab", "aba"),
        (["abcd", "bc"], "xabcd", "xa"),
        (["abc", "c"], "xabc", "x"),
        (["ab", "abc"], "abc", ""),
        (["bcd", "abcx"], "abcd", "a"),
        (["\n\n"], "a\n\nb", "a"),
        (["\n\nQ:"], "a\n\n\nQ:", "a\n"),
        (["é", "😀"], "x😀", "x"),
        (["no", "such"], "text", "text"),
        (["texts"], "text", "text"),
        ([], "text", "text"),
    ],
)
def test_cases(stops: list[str], text: str, passed: str) -> None:
    """``aab`` in ``aaab`` is the case a matcher misses that starts afresh after a failed match."""
    stopped = passed != text
    for chunks in every_cut(text):
        assert run(stops, chunks) == (passed, stopped), chunks


texts = st.text("ab\n", max_size=24)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


@given(stop_lists, st.lists(texts, max_size=8))
@settings(max_examples=2000, deadline=None)
def test_it_is_the_definition_in_any_chunks(stops: list[str], chunks: list[str]) -> None:
    whole = "".join(chunks)
    expected = definition(stops, whole)
    assert run(stops, chunks) == expected
    assert whole.startswith(expected[0])
    assert not any(stop in expected[0] for stop in stops)


@given(stop_lists, st.lists(texts, max_size=8))
@settings(max_examples=1000, deadline=None)
def test_what_was_passed_on_stays(stops: list[str], chunks: list[str]) -> None:
    """No chunk passes on a part of what later turns out to be the stop, and none too little at the end."""
    matcher = StopMatcher(stops)
    result, _ = definition(stops, "".join(chunks))
    passed = ""
    for chunk in chunks:
        passed += matcher.push(chunk)
        assert result.startswith(passed)
    assert passed + matcher.flush() == result


@given(stop_lists.filter(bool), texts)
@settings(max_examples=1000, deadline=None)
def test_only_what_may_become_a_stop_is_held_back(stops: list[str], text: str) -> None:
    """Else a stream with ``--stop`` would stutter."""
    matcher = StopMatcher(stops)
    held = len(text) - len(matcher.push(text))
    if not matcher.stopped and held:
        assert any(stop.startswith(text[-held:]) for stop in stops)


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.stopped
    assert (matcher.push("c"), matcher.flush()) == ("", "")


def test_flush_gives_back_once() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.push("xab") == "x"
    assert (matcher.flush(), matcher.flush()) == ("ab", "")
    assert not matcher.stopped
