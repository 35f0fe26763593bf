"""The noise of a token: a pure function of its sequence's seed, its position in the text and its id.

Counter-based: Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"). So a
text depends neither on streaming, nor on its neighbours in a batch, nor on a rewind; and two models that
nearly agree draw the same token, for the noise of a token does not depend on the others that were kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
"""32-bit words, each in 64 bits."""

_WORD = 0xFFFFFFFF
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_LOW = np.array(_WORD, np.uint64)
_HALF, _DROPPED, _ODD = np.array(32, np.uint64), np.array(11, np.uint64), np.array(1, np.uint64)


def philox4x32(even: Words, odd: Words, key: tuple[int, int]) -> tuple[Words, Words]:
    """Philox4x32-10 of n counters, which are overwritten.

    ``even`` [2, n] are the words 0 and 2 of each counter, ``odd`` [2, n] the words 1 and 3, and so are
    the two results; ``key`` is two words.
    """
    product = np.empty_like(even)
    swapped = product[::-1]
    for round_key in _round_keys(key):
        np.multiply(even, _MULTIPLIERS, product)
        np.right_shift(swapped, _HALF, even)
        np.bitwise_xor(even, odd, even)
        np.bitwise_xor(even, round_key, even)
        np.bitwise_and(swapped, _LOW, odd)
    return even, odd


@lru_cache(maxsize=128)
def _round_keys(key: tuple[int, int]) -> tuple[Words, ...]:
    return tuple(
        np.array([[(word + n * step) & _WORD] for word, step in zip(key, _WEYL, strict=True)], np.uint64)
        for n in range(_ROUNDS)
    )


def gumbel(seed: int, position: int, ids: ArrayLike) -> NDArray[np.float64]:
    """The noise [n] of the tokens ``ids`` [n] at ``position`` (from 0) of a text: -ln(-ln u).

    The definition, which must never change: Philox of the counter (id // 2, position % 2**32,
    position // 2**32, 0) and the key (seed, 0) gives four words. An even id takes the first two, an odd
    one the last two, as a number of 64 bits, the first word being the high one. Its upper 53 bits, the last
    of them set to 1, times 2**-53 are u: never 0, never 1, and exact.
    """
    tokens = np.asarray(ids, np.int64)
    pairs = _bits(seed, position, tokens >> 1)
    return _noise(np.where(tokens & 1, pairs[1], pairs[0]))


def gumbel_of_all(seed: int, position: int, vocabulary: int) -> NDArray[np.float64]:
    """`gumbel` of the tokens 0 … ``vocabulary`` - 1, in half the time."""
    pairs = _bits(seed, position, np.arange((vocabulary + 1) // 2))
    return _noise(pairs.T.ravel()[:vocabulary])


def _bits(seed: int, position: int, pair: NDArray[np.int64]) -> Words:
    """64 random bits for the even and the odd id of each pair: [2, n]."""
    even, odd = np.empty((2, len(pair)), np.uint64), np.zeros((2, len(pair)), np.uint64)
    even[0], even[1], odd[0] = pair, position >> 32, position & _WORD
    even, odd = philox4x32(even, odd, (seed, 0))
    return np.bitwise_or(np.left_shift(even, _HALF, even), odd, even)


def _noise(bits: Words) -> NDArray[np.float64]:
    """-ln(-ln u) for [n] numbers of 64 bits, which are overwritten."""
    np.right_shift(bits, _DROPPED, bits)
    u = np.multiply(np.bitwise_or(bits, _ODD, bits), 2.0**-53)
    for _ in range(2):
        np.negative(np.log(u, u), u)
    return u
