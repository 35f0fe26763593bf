"""The noise of a token: Philox as published, and what we make of its words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt2cli.core.random import gumbel, gumbel_of_all, philox4x32
from gpt2cli.options import MAX_SEED

ONES = 0xFFFFFFFF

# kat_vectors of Random123, philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def _philox(counter: tuple[int, ...], key: tuple[int, int], copies: int = 1) -> list[int]:
    words = np.array([counter] * copies, np.uint64).T  # [4, copies]
    even, odd = philox4x32(words[::2].copy(), words[1::2].copy(), key)
    return [int(part[row, copies // 2]) for row in (0, 1) for part in (even, odd)]


@pytest.mark.parametrize("copies", [1, 50])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int], copies: int
) -> None:
    assert _philox(counter, key, copies) == [*words]


def _by_definition(seed: int, position: int, token: int) -> float:
    words = _philox((token // 2, position % 2**32, position // 2**32, 0), (seed, 0))
    high, low = words[2 * (token % 2) :][:2]
    u = ((high << 32 | low) >> 11 | 1) * 2.0**-53
    return -math.log(-math.log(u))


@given(
    st.integers(0, MAX_SEED),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 300_000), min_size=1, max_size=5),
)
def test_the_noise_is_its_definition(seed: int, position: int, ids: list[int]) -> None:
    """Texts depend on it: it must never change."""
    assert gumbel(seed, position, ids).tolist() == pytest.approx(
        [_by_definition(seed, position, token) for token in ids], rel=1e-14, abs=1e-14
    )


def test_the_noise_is_what_it_was() -> None:
    assert gumbel(1234, 7, [0, 1, 50256]).tolist() == pytest.approx(
        [0.9097298777618038, 1.8312115062020964, -0.1260164445839719], rel=1e-14
    )


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 257, 50257])
def test_that_of_a_whole_vocabulary_is_the_same(vocabulary: int) -> None:
    whole = gumbel_of_all(3, 2**33 + 1, vocabulary)
    assert whole.tolist() == gumbel(3, 2**33 + 1, np.arange(vocabulary)).tolist()


def test_positions_beyond_a_word_are_not_folded() -> None:
    assert gumbel(1, 2**32 + 5, [0]) != gumbel(1, 5, [0])


def test_it_is_always_finite() -> None:
    """u lies in the open interval: 1 would be drawn whatever the model says, 0 never."""
    from gpt2cli.core import random as module

    ends = module._noise(np.array([0, 2**64 - 1], np.uint64))
    assert ends.tolist() == pytest.approx([-math.log(53 * math.log(2)), 53 * math.log(2)])


def _uniforms(along: str, count: int) -> NDArray[np.float64]:
    """The numbers that the noise is made of, along one of its three arguments."""
    match along:
        case "ids":
            noise = gumbel(3, 3, np.arange(count))
        case "positions":
            noise = np.concatenate([gumbel(3, n, [3]) for n in range(count)])
        case _:
            noise = np.concatenate([gumbel(n, 3, [3]) for n in range(count)])
    return np.exp(-np.exp(-noise))


@pytest.mark.parametrize(
    ("along", "count"), [("ids", 100_000), ("positions", 5000), ("seeds", 5000)], ids=lambda v: str(v)
)
def test_it_is_uniform(along: str, count: int) -> None:
    """Over the vocabulary, along a text, and over the sequences of -n: their seeds are neighbours."""
    counts, _ = np.histogram(_uniforms(along, count), bins=100, range=(0, 1))
    expected = count / 100
    # 99 degrees of freedom: 148 is passed once in a thousand times.
    assert 55 < float(((counts - expected) ** 2 / expected).sum()) < 148


@pytest.mark.parametrize("step", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, -1, 0), (1, 1, 1)], ids=str)
def test_neighbours_are_not_correlated(step: tuple[int, int, int]) -> None:
    seeds, positions, ids = step

    def numbers(by: int) -> NDArray[np.float64]:
        rows = [
            gumbel(1000 + n + seeds * by, 9000 + n + positions * by, np.arange(100) + ids * by)
            for n in range(100)
        ]
        return np.exp(-np.exp(-np.concatenate(rows)))

    correlation = float(np.corrcoef(numbers(0), numbers(1))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(10_000)
