"""The key-value cache: static buffers with a length per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.checkpoint import ModelConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the tokens of one forward pass go.

    ``counts`` are the real tokens of each row, the rest of a row being padding on the right;
    ``positions`` is [T] where all rows are at the same place, else [B, T]; ``mask`` is boolean, true
    where a query may look, None where causality alone (``causal``) or nothing has to be masked.
    """

    length: int
    counts: tuple[int, ...]
    uniform: bool
    positions: Tensor
    mask: Tensor | None
    causal: bool
    end: int


class KVCache:
    """Keys and values of all layers: per layer two buffers [B, H, capacity, Dh], zeroed.

    ``lengths`` is the number of tokens present in each row, so that prompts of unequal length share
    a batch. Buffers grow by doubling (`reserve`), up to the model's positions.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: list[int], limit: int) -> None:
        self._keys, self._values, self._limit = keys, values, limit
        self.lengths = lengths

    @classmethod
    def empty(
        cls, config: ModelConfig, rows: int = 1, capacity: int = 64, device: torch.device | None = None
    ) -> KVCache:
        """A cache with nothing in it; ``capacity`` is in tokens."""
        capacity = min(max(capacity, 1), config.n_positions)
        shape = (rows, config.n_head, capacity, config.head_dim)
        layers = range(config.n_layer)
        keys = [torch.zeros(shape, device=device) for _ in layers]
        values = [torch.zeros(shape, device=device) for _ in layers]
        return cls(keys, values, [0] * rows, config.n_positions)

    @property
    def rows(self) -> int:
        """The batch size, B."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """The tokens each row can hold without growing."""
        return self._keys[0].shape[2]

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` in each row."""
        if tokens <= self.capacity:
            return
        if tokens > self._limit:
            raise ValueError(f"{tokens} tokens are more than the model's {self._limit} positions")
        capacity = min(max(tokens, 2 * self.capacity), self._limit)
        present = max(self.lengths)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
                new[:, :, :present] = old[:, :, :present]
                buffers[layer] = new

    def plan(self, tokens: int, counts: Sequence[int] | None = None) -> Plan:
        """Prepare a forward pass over ``tokens`` new tokens a row, of which ``counts`` are real."""
        counts = tuple(counts) if counts is not None else (tokens,) * self.rows
        end = max(length + count for length, count in zip(self.lengths, counts, strict=True))
        self.reserve(end)
        device = self._keys[0].device
        length = self.lengths[0]
        steps = torch.arange(tokens, device=device)
        if all(n == length for n in self.lengths) and all(n == tokens for n in counts):
            first = length == 0 and tokens > 1
            mask = None
            if tokens > 1 and not first:
                mask = torch.arange(end, device=device) <= (steps + length)[:, None]
            return Plan(tokens, counts, True, steps + length, mask, first, end)
        # [B, T]; padding may point past the end, where there is no position to look up.
        positions = torch.tensor(self.lengths, device=device)[:, None] + steps
        mask = torch.arange(end, device=device) <= positions[:, None, :, None]
        return Plan(tokens, counts, False, positions.clamp(max=self._limit - 1), mask, False, end)

    def write(self, plan: Plan, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v: [B, H, T, Dh] of one layer; the views [B, H, end, Dh] to attend to."""
        for buffer, new in ((self._keys[layer], k), (self._values[layer], v)):
            if plan.uniform:
                buffer[:, :, self.lengths[0] : plan.end] = new
                continue
            for row, (start, count) in enumerate(zip(self.lengths, plan.counts, strict=True)):
                buffer[row, :, start : start + count] = new[row, :, :count]
        return self._keys[layer][:, :, : plan.end], self._values[layer][:, :, : plan.end]

    def advance(self, plan: Plan) -> None:
        """The tokens of ``plan`` are now present."""
        self.lengths = [length + count for length, count in zip(self.lengths, plan.counts, strict=True)]

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` of each row."""
        self.lengths = [min(length, tokens) for length in self.lengths]

    def expand(self, rows: int) -> KVCache:
        """A copy of this one-row cache with ``rows`` rows."""
        keys = [k.expand(rows, -1, -1, -1).contiguous() for k in self._keys]
        values = [v.expand(rows, -1, -1, -1).contiguous() for v in self._values]
        return KVCache(keys, values, self.lengths * rows, self._limit)

    def select(self, rows: Sequence[int]) -> KVCache:
        """A copy with only the given rows."""
        index = torch.tensor(list(rows), device=self._keys[0].device)
        keys = [k.index_select(0, index) for k in self._keys]
        values = [v.index_select(0, index) for v in self._values]
        return KVCache(keys, values, [self.lengths[row] for row in rows], self._limit)

    def row(self, row: int) -> KVCache:
        """A one-row view on the same buffers, with a length of its own."""
        keys = [k[row : row + 1] for k in self._keys]
        values = [v[row : row + 1] for v in self._values]
        return KVCache(keys, values, [self.lengths[row]], self._limit)
