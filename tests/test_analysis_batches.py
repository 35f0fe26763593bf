"""Texts in groups, and in batches of like length."""

from __future__ import annotations

import random

from gpt2cli.analysis.batches import by_length, gathered, run_by_length


def test_batches_hold_what_fits() -> None:
    """As many as there is room for, the longest first; one that is longer than the room is alone."""
    pick = random.Random(4)
    lengths = [pick.randrange(0, 60) for _ in range(100)]
    batches = list(by_length(lengths, 40))
    ordered = [n for batch in batches for n in batch]
    assert sorted(ordered) == list(range(100))
    assert [lengths[n] for n in ordered] == sorted(lengths, reverse=True)
    sums = [sum(lengths[n] for n in batch) for batch in batches]
    assert all(total <= 40 or len(batch) == 1 for total, batch in zip(sums, batches, strict=True))
    for total, after in zip(sums, batches[1:], strict=False):
        assert total + lengths[after[0]] > 40
    assert list(by_length([], 40)) == []


def test_results_come_in_the_order_of_the_texts() -> None:
    seen: list[list[str]] = []

    def run(batch: list[str]) -> list[str]:
        seen.append(batch)
        return [text.upper() for text in batch]

    assert run_by_length(["a", "bbbb", "cc", "dd"], len, 4, run) == ["A", "BBBB", "CC", "DD"]
    assert seen == [["bbbb"], ["cc", "dd"], ["a"]]


def test_groups_end_where_they_may() -> None:
    words = ["aa", "bb", "c.", "dd", "ee", "f.", "g"]
    assert list(gathered(words, len, 1)) == [["aa", "bb"], ["c.", "dd"], ["ee", "f."], ["g"]]
    ends = list(gathered(words, len, 1, lambda word: word.endswith(".")))
    assert ends == [["aa", "bb", "c."], ["dd", "ee", "f."], ["g"]]
    assert list(gathered([], len, 1)) == []
