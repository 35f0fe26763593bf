"""A checkpoint's tensors on a device, in a precision, ready for plain torch products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.quantise import FP16_MAX, GROUP, Kind, dequantise, quantise
from gpt2cli.core.tensors import Tensors, open_tensors

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's parameters, [D] fp32 each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ + b, multiplied in the type of W: [out, in]. What goes in and comes out is fp32."""

    weight: Tensor
    bias: Tensor | None
    kernel: str

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]"""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer."""

    ln_1: Norm
    c_attn: Linear
    c_proj: Linear
    ln_2: Norm
    mlp_fc: Linear
    mlp_proj: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. ``wte`` [V, D] stays in the type it has on disk; ``wpe`` [positions, D] is fp32."""

    wte: Tensor
    wpe: Tensor
    blocks: tuple[Block, ...]
    ln_f: Norm
    head: Linear
    precision: Kind

    @property
    def kernels(self) -> tuple[str, ...]:
        """What multiplies, each once."""
        used = [n for b in self.blocks for n in (b.c_attn, b.c_proj, b.mlp_fc, b.mlp_proj)]
        return tuple(dict.fromkeys(linear.kernel for linear in (*used, self.head)))


def load_weights(checkpoint: Checkpoint, precision: Kind, device: torch.device) -> Weights:
    """Read every tensor. Raises `ModelFileError` for a NaN or an infinity, naming the tensor.

    On a CPU fp32 weights are views on the mapped file.
    """
    reader = _Reader(open_tensors(checkpoint), precision, device)
    return Weights(
        wte=reader.wte,
        wpe=reader.vector("wpe.weight"),
        blocks=tuple(reader.block(layer) for layer in range(checkpoint.config.n_layer)),
        ln_f=reader.norm("ln_f"),
        head=reader.head(),
        precision=precision,
    )


class _Reader:
    def __init__(self, tensors: Tensors, precision: Kind, device: torch.device) -> None:
        self._tensors, self._precision, self._device = tensors, precision, device
        self.wte = self.stored("wte.weight").to(device)

    def block(self, layer: int) -> Block:
        at = f"h.{layer}"
        return Block(
            ln_1=self.norm(f"{at}.ln_1"),
            c_attn=self.linear(f"{at}.attn.c_attn"),
            c_proj=self.linear(f"{at}.attn.c_proj"),
            ln_2=self.norm(f"{at}.ln_2"),
            mlp_fc=self.linear(f"{at}.mlp.c_fc"),
            mlp_proj=self.linear(f"{at}.mlp.c_proj"),
        )

    def norm(self, name: str) -> Norm:
        return Norm(self.vector(f"{name}.weight"), self.vector(f"{name}.bias"))

    def linear(self, name: str) -> Linear:
        weight, kernel = self._matrix(f"{name}.weight", self._precision)
        return Linear(weight, self.vector(f"{name}.bias").to(weight.dtype), kernel)

    def head(self) -> Linear:
        # int8 where int4 is asked for: much less is lost.
        precision: Kind = "int8" if self._precision == "int4" else self._precision
        weight, kernel = self._matrix(self._tensors.head_name(), precision)
        return Linear(weight, None, kernel)

    def vector(self, name: str) -> Tensor:
        return self.stored(name).to(self._device, torch.float32)

    def stored(self, name: str) -> Tensor:
        """The tensor in the type of the file, a view on it."""
        array, kind = self._tensors.read_finite(name)
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if kind == "BF16" else tensor

    def _matrix(self, name: str, precision: Kind) -> tuple[Tensor, str]:
        """The matrix [out, in] on the device, and what multiplies with it."""
        typed, kernel = self._typed(name, precision)
        self._tensors.forget(name)
        return typed, kernel

    def _typed(self, name: str, precision: Kind) -> tuple[Tensor, str]:
        weight = self.wte if name == "wte.weight" else self.stored(name)
        # Conv1D keeps [in, out]; the view costs nothing.
        weight = weight.t() if name.startswith("h.") else weight
        if precision in ("int8", "int4"):
            bits: Literal[4, 8] = 8 if precision == "int8" else 4
            exact = dequantise(*quantise(weight.float().cpu().numpy(), bits))
            kernel = f"torch fp32, weights rounded to {precision} in groups of {GROUP}"
            return torch.from_numpy(exact).to(self._device), kernel
        if precision == "fp16" and float(weight.abs().max()) > FP16_MAX:
            precision = "fp32"
        typed = weight.to(self._device, _TYPES[precision])
        if self._device.type == "cpu" and precision != "fp32":
            return typed.float(), f"torch fp32, weights rounded to {precision}"
        return typed, f"torch {precision}"
