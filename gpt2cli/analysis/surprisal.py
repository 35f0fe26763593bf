"""What a plot of a text's surprisal shows, gathered token by token in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2cli.likelihood import LN2

BIN_BITS = 0.5
BINS = 60
"""The number of bins of `BIN_BITS` each; what is more surprising goes into the last."""
PLACES = 512


class Surprisal:
    """A histogram of -log2 p, and the mean of log p over stretches of the text.

    A stretch is one token, and twice as many each time there would be more than `PLACES` stretches.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._counts = torch.tensor(state.get("counts", [0] * BINS))
        self._sums: list[float] = list(state.get("sums", ()))
        self._numbers: list[int] = list(state.get("numbers", ()))
        self._stretch = int(state.get("stretch", 1))

    def state(self) -> dict[str, Any]:
        """What makes an equal one, as JSON."""
        return {
            "counts": self._counts.tolist(),
            "sums": self._sums,
            "numbers": self._numbers,
            "stretch": self._stretch,
        }

    def add(self, place: int, logprobs: Tensor) -> None:
        """Take in tokens that follow each other in the text, the first of them at ``place``: [N] nats."""
        bits = -logprobs.double() / LN2
        self._counts += torch.bincount((bits / BIN_BITS).long().clamp(0, BINS - 1), minlength=BINS)
        for n, logprob in enumerate(logprobs.tolist()):
            at = (place + n) // self._stretch
            while at >= PLACES:
                self._widen()
                at = (place + n) // self._stretch
            while len(self._sums) <= at:
                self._sums.append(0.0)
                self._numbers.append(0)
            self._sums[at] += logprob
            self._numbers[at] += 1

    def _widen(self) -> None:
        self._stretch *= 2
        self._sums = _pairs(self._sums)
        self._numbers = _pairs(self._numbers)

    @property
    def stretch(self) -> int:
        """Tokens a point of `by_place` stands for."""
        return self._stretch

    def distribution(self) -> list[tuple[float, float]]:
        """(bits, share of the tokens), a point in the middle of each bin up to the last that is not empty."""
        total = int(self._counts.sum())
        if not total:
            return []
        last = int(self._counts.nonzero().max())
        counts = self._counts[: last + 1].tolist()
        return [((n + 0.5) * BIN_BITS, count / total) for n, count in enumerate(counts)]

    def by_place(self) -> list[tuple[float, float]]:
        """(place in the text, probability): of one token, or the geometric mean over a stretch."""
        pairs = zip(self._sums, self._numbers, strict=True)
        return [
            ((n + 0.5) * self._stretch - 0.5, math.exp(total / number))
            for n, (total, number) in enumerate(pairs)
            if number
        ]


def _pairs(values: Sequence[Any]) -> list[Any]:
    return [sum(values[at : at + 2]) for at in range(0, len(values), 2)]
