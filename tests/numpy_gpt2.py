"""GPT-2 in numpy, fp32, over flat batches: a backend for tests, and a second truth beside torch.

Every token goes through on its own, so that its logits are the same bits whatever is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.core.arrays import as_float32
from gpt2cli.core.backend import Batch, EngineInfo, Floats
from gpt2cli.core.engine import Engine
from gpt2cli.core.tensors import open_tensors
from gpt2cli.text.tokenizer import Tokenizer

_ERF = np.frompyfunc(math.erf, 1, 1)
_ACTIVATIONS: dict[str, Callable[[Floats], Any]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + _ERF(x / math.sqrt(2)).astype(np.float32)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


class NumpyBackend:
    """`Backend`, token by token; ``passes`` are the batches it has had."""

    batch_invariant = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.info = checkpoint.config, EngineInfo("cpu", "fp32", ("numpy",), 1)
        tensors = open_tensors(checkpoint)
        names = [*checkpoint.tensors]
        self._w = {name: as_float32(*tensors.read(name)) for name in names}
        self._head = self._w[tensors.head_name()]
        self.bytes_per_token = 8 * self.config.n_layer * self.config.n_embd
        self.slots: dict[int, Floats] = {}
        self.passes: list[Batch] = []
        self._made = 0

    def new_slot(self) -> int:
        config = self.config
        self._made += 1
        # NaN: what was never written must never be read.
        shape = (config.n_layer, 2, config.n_positions, config.n_head, config.head_dim)
        self.slots[self._made] = np.full(shape, np.nan, np.float32)
        return self._made

    def free_slot(self, slot: int) -> None:
        del self.slots[slot]

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        self.slots[target][:, :, :tokens] = self.slots[source][:, :, :tokens]

    def forward(self, batch: Batch) -> Floats:
        assert len(batch) and batch.positions.max() < self.config.n_positions
        self.passes.append(batch)
        rows = zip(batch.tokens.tolist(), batch.slots.tolist(), batch.positions.tolist(), strict=True)
        hidden = [self.token(*row) for row in rows]
        return (
            np.stack([self._head @ hidden[at] for at in batch.wanted]) if len(batch.wanted) else self._none()
        )

    def token(self, token: int, slot: int, position: int) -> Floats:
        """The final hidden state [D] of one token, which joins its slot."""
        config, w = self.config, self._w
        x = w["wte.weight"][token] + w["wpe.weight"][position]
        for n in range(config.n_layer):
            q, *new = self._linear(self._norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").reshape(
                3, config.n_head, config.head_dim
            )
            self.slots[slot][n, :, position] = new
            keys, values = self.slots[slot][n, :, : position + 1]  # [T, H, Dh]
            scores = (keys * q).sum(-1) * np.float32(config.attention_scale(n))  # [T, H]
            weights = np.exp(scores - scores.max(0))
            context = (values * (weights / weights.sum(0))[..., None]).sum(0)
            x = x + self._linear(context.reshape(-1), f"h.{n}.attn.c_proj")
            inner = self._linear(self._norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc")
            x = x + self._linear(_ACTIVATIONS[config.activation_function](inner), f"h.{n}.mlp.c_proj")
        return self._norm(x, "ln_f")

    def _linear(self, x: Floats, name: str) -> Floats:
        return x @ self._w[f"{name}.weight"] + self._w[f"{name}.bias"]

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean()
        scaled = centred / np.sqrt((centred * centred).mean() + np.float32(self.config.layer_norm_epsilon))
        return scaled * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]

    def _none(self) -> Floats:
        return np.empty((0, self.config.vocab_size), np.float32)

    def close(self) -> None:
        self.slots.clear()


def load_numpy(directory: Path) -> Engine:
    """An `Engine` over a `NumpyBackend`."""
    checkpoint = open_checkpoint(directory)
    return Engine(checkpoint, NumpyBackend(checkpoint), Tokenizer.from_directory(directory))
