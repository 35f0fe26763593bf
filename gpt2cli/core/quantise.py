"""A weight matrix in another precision: the numbers, before any kernel's packing.

What is made here is what may be kept in a file (`core/converted.py`), so that it does not depend on the
machine that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["fp32", "fp16", "bf16", "int8", "int4"]

FP16_MAX = 65504.0
INT4_GROUP = 64
_INT4_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in] as it is stored.

    ``values`` are fp32, fp16 or bf16 [out, in]; int8 [out, in] with ``scales`` fp32 [out]; or, for int4,
    two of 0…15 (8 is zero) in a byte, the first in the low bits, uint8 [out, in / 2] with ``scales``
    bf16 [out, in / `INT4_GROUP`].
    """

    kind: Kind
    values: Tensor
    scales: Tensor | None = None

    def to(self, device: torch.device) -> Matrix:
        """The matrix on ``device``."""
        scales = None if self.scales is None else self.scales.to(device)
        return Matrix(self.kind, self.values.to(device), scales)


def kind_for(weight: Tensor, precision: Kind) -> Kind:
    """The precision that a matrix [out, in] is kept in when ``precision`` is asked for.

    fp16 cannot hold what is over 65,504; int4 needs whole groups.
    """
    if precision == "fp16" and weight.dtype != torch.float16 and float(weight.abs().max()) > FP16_MAX:
        return "fp32"
    if precision == "int4" and weight.shape[1] % INT4_GROUP:
        return "int8"
    return precision


def to_matrix(weight: Tensor, precision: Kind) -> Matrix:
    """``weight`` [out, in] in ``precision``, or in the next one that can hold it."""
    kind = kind_for(weight, precision)
    if kind == "int8":
        return Matrix(kind, *quantise_int8(weight))
    if kind == "int4":
        quantised, scales = quantise_int4(weight)
        return Matrix(kind, pack_int4(quantised), scales)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    weight = weight.to(dtype)
    # An fp32 weight is packed from whatever view it is; a 16-bit one may be read row by row.
    return Matrix(kind, weight if kind == "fp32" else weight.contiguous())


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 by output: weight [out, in] -> int8 [out, in], scales fp32 [out]."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    return torch.round(weight / scales[:, None]).to(torch.int8).contiguous(), scales


def quantise_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int4 by group of inputs: weight [out, in] -> uint8 0…15 [out, in] (8 is zero), bf16 scales.

    Of some steps between 0.7 times the one that holds the largest weight and that one itself, each group
    takes the one of the smallest squared error. scales: [out, groups].
    """
    # grouped: [out, groups, group]
    grouped = weight.float().reshape(len(weight), -1, INT4_GROUP)
    largest = grouped.abs().amax(dim=2)
    # The side of the largest weight gets the eighth step.
    sign = torch.where(grouped.amax(dim=2) >= largest, -1.0, 1.0)
    best = torch.full_like(largest, torch.inf)
    scales = torch.empty_like(largest)
    for shrink in _INT4_SHRINKS:
        tried = (sign * shrink * largest.clamp_min(1e-12) / 8).bfloat16().float()
        error = (_round_int4(grouped, tried) * tried[..., None] - grouped).square_().sum(dim=2)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    quantised = (_round_int4(grouped, scales) + 8).to(torch.uint8)
    return quantised.view(len(weight), -1), scales.bfloat16()


def _round_int4(grouped: Tensor, scales: Tensor) -> Tensor:
    return torch.round(grouped / scales[..., None]).clamp_(-8, 7)


def pack_int4(quantised: Tensor) -> Tensor:
    """uint8 0…15 [out, in] -> two in a byte [out, in / 2]"""
    return quantised[:, ::2] | (quantised[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Two in a byte [out, in / 2] -> int32 0…15 [out, in], as torch's kernels want them."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).view(len(packed), -1).to(torch.int32)
