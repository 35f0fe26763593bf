"""A decode step recorded once as a CUDA graph, and replayed for each token.

A step of a model this small is some hundred short kernels, and launching them takes longer than they run
(NVIDIA, CUDA Graphs; Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs"). What is recorded may
change neither its shapes nor its addresses: so all slots lie in one pool, a step looks at the whole of them
behind a mask, and reads which token comes in which slot at which position from a tensor of its own. A step
is recorded for 1, 2, 4, 8, … rows; rows that are not needed point at a spare slot.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.checkpoint import ModelConfig
from gpt2cli.core.backend import Batch
from gpt2cli.core.torch_gpt2 import Slots, TorchGPT2

SPARE = 0
"""The slot that rows without a text write to."""
_FIRST_SLOTS, _FIRST_CAPACITY = 4, 256
_WARM_UPS = 3


class Pool(Slots):
    """Slots of one capacity in one buffer [slots, L, 2, H, capacity, Dh], zeroed; both double as needed."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._capacity = min(_FIRST_CAPACITY, config.n_positions)
        self._free: list[int] = [*range(_FIRST_SLOTS - 1, SPARE, -1)]
        self.whole = self._empty_pool(_FIRST_SLOTS)

    @torch.inference_mode()
    def new(self) -> int:
        """An empty slot."""
        if not self._free:
            slots = len(self.whole)
            self._grow(2 * slots)
            self._free = [*range(2 * slots - 1, slots - 1, -1)]
        slot = self._free.pop()
        # A NaN that a text left behind would show through the mask.
        self.whole[slot].zero_()
        return slot

    def free(self, slot: int) -> None:
        """The slot is not needed any more."""
        self._free.append(slot)

    def buffer(self, slot: int) -> Tensor:
        """[L, 2, H, capacity, Dh]"""
        return self.whole[slot]

    @torch.inference_mode()
    def reserve(self, slot: int, tokens: int, present: int) -> None:
        """Make room for ``tokens``, keeping what there is."""
        if tokens > self._capacity:
            self._capacity = min(max(tokens, 2 * self._capacity), self.config.n_positions)
            self._grow(len(self.whole))

    def _grow(self, slots: int) -> None:
        old = self.whole
        self.whole = self._empty_pool(slots)
        self.whole[: len(old), :, :, :, : old.shape[4]] = old

    def _empty_pool(self, slots: int) -> Tensor:
        config = self.config
        shape = (slots, config.n_layer, 2, config.n_head, self._capacity, config.head_dim)
        return torch.zeros(shape, dtype=torch.float32, device=self.device)


class DecodeGraphs:
    """The recorded steps of a model over a pool, by their number of rows."""

    def __init__(self, model: TorchGPT2, pool: Pool) -> None:
        self._model, self._pool = model, pool
        self._graphs: dict[int, DecodeGraph] = {}

    def step(self, batch: Batch) -> Tensor:
        """The logits [N, V] after a batch of one token a slot."""
        for slot, position in zip(batch.slots.tolist(), batch.positions.tolist(), strict=True):
            self._pool.reserve(slot, position + 1, position)
        # Where the pool has moved, what was recorded writes to the old one.
        self._graphs = {n: g for n, g in self._graphs.items() if g.pool is self._pool.whole}
        rows = 1 << (len(batch) - 1).bit_length()
        if rows not in self._graphs:
            self._graphs[rows] = DecodeGraph(self._model, self._pool.whole, rows)
        return self._graphs[rows].step(batch)


class DecodeGraph:
    """The recorded step of one model over one pool, for a number of rows."""

    def __init__(self, model: TorchGPT2, pool: Tensor, rows: int) -> None:
        self.pool = pool
        self._inputs = torch.full((3, rows), SPARE, dtype=torch.long, device=model.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What these write is in the spare slot.
            for _ in range(_WARM_UPS):
                static_step(model, pool, self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = static_step(model, pool, self._inputs)

    def step(self, batch: Batch) -> Tensor:
        """The logits [N, V] after a batch of one token a slot."""
        self._inputs.copy_(step_inputs(batch, self._inputs.shape[1]))
        self._graph.replay()
        return self._logits[: len(batch)].clone()


def step_inputs(batch: Batch, rows: int) -> Tensor:
    """Tokens, slots and positions of a batch of one token a slot, with rows for the spare slot: [3, rows]."""
    inputs = np.full((3, rows), SPARE, np.int64)
    inputs[:, : len(batch)] = batch.tokens, batch.slots, batch.positions
    return torch.from_numpy(inputs)


@torch.inference_mode()
def static_step(model: TorchGPT2, pool: Tensor, inputs: Tensor) -> Tensor:
    """One token a row, in fixed shapes: inputs [3, B] (tokens, slots, positions) -> logits [B, V].

    Keys and values are written to ``pool`` [slots, L, 2, H, capacity, Dh].
    """
    tokens, slots, positions = inputs.unbind()
    # [B, 1, 1, capacity]
    mask = (torch.arange(pool.shape[4], device=pool.device) <= positions[:, None])[:, None, None]

    def attend(layer: int, qkv: Tensor) -> Tensor:
        """qkv: [B, 3, H, Dh] -> [B, D]"""
        # Indices on both sides of a slice bring their dimension to the front: [B, 2, H, Dh]
        pool[:, layer][slots, :, :, positions] = qkv[:, 1:]
        keys, values = pool[slots, layer].unbind(1)
        scale = model.config.attention_scale(layer)
        context = F.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values, mask, scale=scale)
        return context.flatten(1)

    return model.logits(model.transform(tokens, positions, attend))
