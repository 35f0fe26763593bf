"""Windows over a text that comes in chunks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from gpt2cli.analysis.windows import WindowOptions, from_token, windows
from gpt2cli.errors import InvalidOption


def in_chunks(ids: list[int], pick: random.Random) -> Iterator[list[int]]:
    at = 0
    while at < len(ids):
        size = pick.choice([0, 1, 2, 7, 40])
        yield ids[at : at + size]
        at += size


def expected(ids: list[int], size: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, end, trg_len) of the guide's loop."""
    found, prev = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        found.append((begin, end, end - prev))
        prev = end
        if end == len(ids):
            break
    return found


def test_the_guides_windows() -> None:
    pick = random.Random(2)
    for _ in range(400):
        ids = [pick.randrange(100) for _ in range(pick.randrange(1, 90))]
        size = pick.randrange(2, 30)
        options = WindowOptions(size, pick.randrange(1, size + 1))
        found = list(windows("t", in_chunks(ids, pick), options))
        wanted = expected(ids, size, options.stride)
        assert [(w.begin, w.begin + len(w.ids), w.fresh) for w in found] == wanted
        assert all(list(w.ids) == ids[w.begin : w.begin + len(w.ids)] for w in found)
        assert [w.last for w in found] == [False] * (len(found) - 1) + [True]
        scored = [place for w in found for place in range(w.begin + w.first, w.begin + len(w.ids))]
        assert len(set(scored)) == len(scored)
        if options.stride < size:
            assert scored == list(range(1, len(ids)))


def test_going_on_from_any_window() -> None:
    pick = random.Random(3)
    for _ in range(200):
        ids = [pick.randrange(100) for _ in range(pick.randrange(2, 90))]
        size = pick.randrange(2, 20)
        options = WindowOptions(size, pick.randrange(1, size + 1))
        found = list(windows(None, [ids], options))
        at = pick.randrange(len(found))
        if at == 0:
            continue
        before = found[at - 1]
        begin, held = before.begin + options.stride, before.begin + len(before.ids)
        chunks = from_token(in_chunks(ids, pick), begin)
        assert list(windows(None, chunks, options, begin=begin, held=held)) == found[at:]


def test_no_more_than_needed_is_kept() -> None:
    """The source is read as the windows move on."""
    read = 0

    def source() -> Iterator[list[int]]:
        nonlocal read
        for _ in range(1000):
            read += 10
            yield [1] * 10

    walk = windows(None, source(), WindowOptions(20, 10))
    for n in range(50):
        window = next(walk)
        assert read <= window.begin + 20 + 10 + 10, n


def test_an_empty_text_has_one_window_that_scores_nothing() -> None:
    (window,) = windows(None, [[]], WindowOptions(8, 4))
    assert window.last and window.scored == 0 and window.fresh == 0


def test_defaults_and_limits() -> None:
    assert WindowOptions.of(1024) == WindowOptions(1024, 512)
    assert WindowOptions.of(1024, 1025, 1024) == WindowOptions(1025, 1024)
    for window, stride in ((1, None), (1026, None), (None, 0), (None, 1025), (10, 11)):
        with pytest.raises(InvalidOption):
            WindowOptions.of(1024, window, stride)
