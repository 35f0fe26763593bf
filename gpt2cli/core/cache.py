"""The key-value cache: static buffers with a length per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.checkpoint import ModelConfig
from gpt2cli.core.pages import on_huge_pages

QUERIES_AT_ONCE = 192
"""Of a long prompt on a CPU: torch's fused attention computes the half that causality hides, too. Of 32 to
256 the fastest in most of the cases that were measured."""
_ALL_AT_ONCE = 768
"""From here on the kernel itself takes its queries in larger blocks, and pieces no longer gain."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the tokens of one forward pass go.

    ``counts`` are the real tokens of each row, the rest of a row being padding on the right;
    ``positions`` is [T] where all rows are at the same place, else [B, T]; ``mask`` is boolean, true
    where a query may look, None where causality alone (``causal``) or nothing has to be masked.
    ``slots`` [2, B, H, T, Dh], one a layer, is where keys and values are written; it is empty where rows
    are at different places. ``views`` [B, H, S, Dh] are what is attended to: the keys of the first
    layer, its values, the keys of the second, and so on. ``pieces``, where there are any, say what
    ``mask`` or ``causal`` says for some queries after the other: [queries, seen], what is added to scores.
    """

    length: int
    counts: tuple[int, ...]
    positions: Tensor
    mask: Tensor | None
    causal: bool
    slots: tuple[Tensor, ...]
    views: tuple[Tensor, ...]
    pieces: tuple[Tensor, ...] = ()


class KVCache:
    """Keys and values of all layers in one buffer [L, 2, B, H, capacity, Dh], zeroed.

    ``lengths`` is the number of tokens present in each row, so that prompts of unequal length share
    a batch. The buffer grows by doubling (`reserve`), up to the model's positions.
    """

    def __init__(self, buffer: Tensor, lengths: list[int], limit: int) -> None:
        self.buffer, self._limit = buffer, limit
        self.lengths = lengths
        self.graph: object | None = None
        """What was recorded over this buffer (`core/cuda_graph.py`)."""

    @classmethod
    def empty(
        cls, config: ModelConfig, rows: int = 1, capacity: int = 64, device: torch.device | None = None
    ) -> KVCache:
        """A cache with nothing in it; ``capacity`` is in tokens."""
        capacity = min(max(capacity, 1), config.n_positions)
        shape = (config.n_layer, 2, rows, config.n_head, capacity, config.head_dim)
        return cls(_zeros(shape, device), [0] * rows, config.n_positions)

    @property
    def rows(self) -> int:
        """The batch size, B."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """The tokens each row can hold without growing."""
        return self.buffer.shape[4]

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` in each row."""
        if tokens <= self.capacity:
            return
        if tokens > self._limit:
            raise ValueError(f"{tokens} tokens are more than the model's {self._limit} positions")
        old, present = self.buffer, max(self.lengths)
        capacity = min(max(tokens, 2 * self.capacity), self._limit)
        self.buffer = _zeros((*old.shape[:4], capacity, old.shape[5]), old.device)
        self.buffer[..., :present, :] = old[..., :present, :]

    def plan(self, tokens: int, counts: Sequence[int] | None = None) -> Plan:
        """Prepare a forward pass over ``tokens`` new tokens a row, of which ``counts`` are real."""
        counts = tuple(counts) if counts is not None else (tokens,) * self.rows
        end = max(length + count for length, count in zip(self.lengths, counts, strict=True))
        self.reserve(end)
        device = self.buffer.device
        length = self.lengths[0]
        steps = torch.arange(tokens, device=device)
        # [2L, B, H, S, Dh], a view each
        views = self.buffer.flatten(0, 1).narrow(3, 0, end).unbind(0)
        if all(n == length for n in self.lengths) and all(n == tokens for n in counts):
            first = length == 0 and tokens > 1
            mask = causal_mask(tokens, length, device) if tokens > 1 and not first else None
            slots = self.buffer.narrow(4, length, tokens).unbind(0)
            pieces = _masks_in_pieces(tokens, length, device) if device.type == "cpu" else ()
            return Plan(tokens, counts, steps + length, mask, first, slots, views, pieces)
        # [B, T]; padding may point past the end, where there is no position to look up.
        positions = torch.tensor(self.lengths, device=device)[:, None] + steps
        mask = torch.arange(end, device=device) <= positions[:, None, :, None]
        return Plan(tokens, counts, positions.clamp(max=self._limit - 1), mask, False, (), views)

    def write(self, plan: Plan, layer: int, keys_and_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's [2, B, H, T, Dh]; the views [B, H, S, Dh] to attend to."""
        if plan.slots:
            plan.slots[layer].copy_(keys_and_values)
        elif plan.length == 1 and all(plan.counts):
            rows = torch.arange(self.rows, device=self.buffer.device)
            # Indices on both sides of a slice bring their dimension to the front: [B, 2, H, Dh]
            self.buffer[layer][:, rows, :, plan.positions[:, 0]] = keys_and_values[..., 0, :].transpose(0, 1)
        else:
            for row, (start, count) in enumerate(zip(self.lengths, plan.counts, strict=True)):
                self.buffer[layer, :, row, :, start : start + count] = keys_and_values[:, row, :, :count]
        return plan.views[2 * layer], plan.views[2 * layer + 1]

    def advance(self, plan: Plan) -> None:
        """The tokens of ``plan`` are now present."""
        self.lengths = [length + count for length, count in zip(self.lengths, plan.counts, strict=True)]

    def truncate(self, tokens: int) -> None:
        """Forget all but the first ``tokens`` of each row."""
        self.lengths = [min(length, tokens) for length in self.lengths]

    def expand(self, rows: int) -> KVCache:
        """A copy of this one-row cache with ``rows`` rows."""
        shape = (*self.buffer.shape[:2], rows, *self.buffer.shape[3:])
        buffer = _zeros(shape, self.buffer.device).copy_(self.buffer)
        return KVCache(buffer, self.lengths * rows, self._limit)

    def select(self, rows: Sequence[int]) -> KVCache:
        """A copy with only the given rows."""
        index = torch.tensor(list(rows), device=self.buffer.device)
        return KVCache(self.buffer.index_select(2, index), [self.lengths[row] for row in rows], self._limit)

    def row(self, row: int) -> KVCache:
        """A one-row view on the same buffer, with a length of its own."""
        return KVCache(self.buffer[:, :, row : row + 1], [self.lengths[row]], self._limit)

    @classmethod
    def join(cls, caches: Sequence[KVCache], capacity: int) -> KVCache:
        """The rows of ``caches``, each of one row, as one batch with room for ``capacity`` tokens."""
        one = caches[0].buffer
        joined = _zeros((*one.shape[:2], len(caches), one.shape[3], capacity, one.shape[5]), one.device)
        for row, cache in enumerate(caches):
            joined[:, :, row, :, : cache.lengths[0]] = cache.buffer[:, :, 0, :, : cache.lengths[0]]
        return cls(joined, [cache.lengths[0] for cache in caches], caches[0]._limit)


def causal_mask(tokens: int, present: int, device: torch.device | None = None) -> Tensor:
    """[tokens, present + tokens]: true where a query may look, ``present`` tokens being before the first."""
    steps = torch.arange(present + tokens, device=device)
    return steps <= steps[present:, None]


def _masks_in_pieces(tokens: int, present: int, device: torch.device) -> tuple[Tensor, ...]:
    if not QUERIES_AT_ONCE < tokens < _ALL_AT_ONCE:
        return ()
    hidden = ~causal_mask(tokens, present, device)
    mask = torch.zeros(hidden.shape, dtype=torch.float32, device=device).masked_fill_(hidden, float("-inf"))
    ends = [*range(QUERIES_AT_ONCE, tokens, QUERIES_AT_ONCE), tokens]
    return tuple(mask[start:end, : present + end] for start, end in zip([0, *ends], ends, strict=False))


def _zeros(shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    buffer = torch.empty(shape, device=device)
    if buffer.device.type == "cpu":
        on_huge_pages(buffer.data_ptr(), buffer.nbytes)
    return buffer.zero_()
