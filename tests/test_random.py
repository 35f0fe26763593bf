"""The random number of a token: Philox as published, and what we make of its words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.core.random import philox4x32, uniform
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


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == words


def test_the_number_is_the_top_53_bits_of_the_first_two_words() -> None:
    """Texts depend on this definition: it must never change."""
    assert uniform(0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53
    high, low, *_ = philox4x32((7, 0, 0, 0), (42, 0))
    assert uniform(42, 7) == ((high << 32 | low) >> 11) / 2**53
    assert [uniform(1234, position) for position in range(3)] == [
        0.12720795181893485,
        0.6208323363941803,
        0.24917273805115403,
    ]


@given(st.integers(0, MAX_SEED), st.integers(0, 2**40))
def test_it_is_below_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_positions_beyond_a_word_are_not_folded() -> None:
    assert uniform(1, 2**32 + 5) != uniform(1, 5)


def _chi_square(numbers: list[float], bins: int) -> float:
    counts = [0] * bins
    for number in numbers:
        counts[int(number * bins)] += 1
    expected = len(numbers) / bins
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_it_is_uniform(along: str) -> None:
    """Along one text, and over the sequences of -n at one position: their seeds are neighbours."""
    numbers = [uniform(3, n) if along == "positions" else uniform(n, 3) for n in range(20_000)]
    # 99 degrees of freedom: 148 is passed once in a thousand times.
    assert 55 < _chi_square(numbers, 100) < 148


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_neighbours_are_not_correlated(step: tuple[int, int]) -> None:
    seeds, positions = step
    pairs = [(uniform(1000 + n, 9000 + n % 7), n) for n in range(5000)]
    others = [uniform(1000 + n + seeds, 9000 + n % 7 + positions) for _, n in pairs]
    correlation = sum((a - 0.5) * (b - 0.5) for (a, _), b in zip(pairs, others, strict=True)) / 5000 * 12
    assert abs(correlation) < 4 / math.sqrt(5000)
