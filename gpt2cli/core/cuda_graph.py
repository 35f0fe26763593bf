"""A decode step recorded once as a CUDA graph, and replayed for each token.

A step of a model this small is some hundred short kernels, and launching them takes longer than they run
(NVIDIA, CUDA Graphs; Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs"). What is recorded may
not change its shapes or addresses: so the step looks at the whole buffer of the cache behind a mask, and
reads from tensors of its own which token comes and where.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.core.cache import KVCache
from gpt2cli.core.model import GPT2

_WARM_UPS = 3


class DecodeGraph:
    """The recorded step of one model over one cache buffer."""

    def __init__(self, model: GPT2, cache: KVCache) -> None:
        self.buffer = cache.buffer
        rows = cache.rows
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=model.device)
        self._positions.copy_(torch.tensor(cache.lengths))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What these write is written again by the first step.
            for _ in range(_WARM_UPS):
                static_step(model, self.buffer, self._ids, self._positions)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = static_step(model, self.buffer, self._ids, self._positions)

    def step(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """The logits [B, V] after ``ids`` [B, 1] at the positions ``lengths``."""
        self._ids.copy_(ids)
        self._positions.copy_(torch.tensor(lengths), non_blocking=True)
        self._graph.replay()
        return self._logits.clone()


def graph_step(model: GPT2, ids: Tensor, cache: KVCache) -> Tensor:
    """`GPT2.forward` for one token a row, through a graph that is recorded on first use of the buffer."""
    cache.reserve(max(cache.lengths) + 1)
    graph = cache.graph
    if not isinstance(graph, DecodeGraph) or graph.buffer is not cache.buffer:
        graph = cache.graph = DecodeGraph(model, cache)
    logits = graph.step(ids, cache.lengths)
    cache.lengths = [length + 1 for length in cache.lengths]
    return logits


@torch.inference_mode()
def static_step(model: GPT2, buffer: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """One token a row, in fixed shapes: ids [B, 1] at ``positions`` [B] -> logits [B, V].

    Keys and values are written to ``buffer`` [L, 2, B, H, capacity, Dh] at those positions.
    """
    weights, config = model.weights, model.config
    rows = torch.arange(ids.shape[0], device=ids.device)
    # [B, 1, 1, capacity]
    mask = (torch.arange(buffer.shape[4], device=ids.device) <= positions[:, None])[:, None, None]
    x = F.embedding(ids, weights.wte).float() + F.embedding(positions, weights.wpe)[:, None]
    for layer, block in enumerate(weights.blocks):
        qkv = block.c_attn(model.norm(x, block.ln_1))
        # [3, B, H, Dh]
        qkv = qkv.view(len(rows), 3, config.n_head, -1).transpose(0, 1)
        # Indices on both sides of a slice bring their dimension to the front: [B, 2, H, Dh]
        buffer[layer][:, rows, :, positions] = qkv[1:].transpose(0, 1)
        keys, values = buffer[layer]
        scale = config.attention_scale(layer)
        attended = F.scaled_dot_product_attention(qkv[0][:, :, None], keys, values, mask, scale=scale)
        x = x + block.c_proj(attended.reshape(x.shape))
        x = x + block.mlp_proj(model.activation(block.mlp_fc(model.norm(x, block.ln_2))))
    return weights.head(model.norm(x[:, 0], weights.ln_f))
