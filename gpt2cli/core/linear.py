"""The matrix kernels: y = x Wᵀ + b for one weight, per precision and device, behind one call.

Activations go in and come out in fp32, whatever the kernel computes in. No kernel lets one row of a
batch change another's result. The packed operators of torch are semi-private: nothing outside this
file names them, and where one is missing `make_linear` falls back to fp32 arithmetic on weights
rounded to the precision asked for, and says so in ``kernel``.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FP16_MAX = 65504.0
INT4_GROUP = 64


class Linear(Protocol):
    """One weight matrix, ready to multiply."""

    kernel: str

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] fp32 -> [..., out] fp32"""
        ...


def make_linear(weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
    """The kernel for ``weight`` (a view [out, in]) in ``precision``: fp32, fp16, bf16, int8 or int4."""
    if precision == "fp32":
        return Fp32Linear(weight.float(), bias)
    on_cpu = weight.device.type == "cpu"
    if precision == "bf16" or (precision == "fp16" and not on_cpu):
        return CastLinear(weight, bias, torch.bfloat16 if precision == "bf16" else torch.float16)
    if precision == "fp16":
        if "fbgemm" in torch.backends.quantized.supported_engines:
            return FbgemmFp16Linear(weight, bias)
        return Fp32Linear(weight.half().float(), bias, "fp32, weights rounded to fp16")
    if precision == "int8":
        quantised, scales = quantise_int8(weight)
        if on_cpu and weight.shape[1] % 16 == 0:
            return Int8Linear(quantised, scales, bias)
        return Fp32Linear(quantised * scales[:, None], bias, "fp32, weights rounded to int8")
    return _make_int4(weight, bias)


def _make_int4(weight: Tensor, bias: Tensor | None) -> Linear:
    columns = weight.shape[1]
    if columns % INT4_GROUP:
        # Too narrow for groups: one step up.
        return make_linear(weight, bias, "int8")
    quantised, scales = quantise_int4(weight, INT4_GROUP)
    if weight.device.type == "cpu" and weight.shape[0] % 16 == 0:
        return Int4Linear(quantised, scales, bias)
    values = (quantised - 8).view(-1, columns // INT4_GROUP, INT4_GROUP) * scales[..., None]
    return Fp32Linear(values.view(-1, columns), bias, "fp32, weights rounded to int4")


class Fp32Linear:
    """fp32 throughout. A transposed view costs nothing: GPT-2's own layout [in, out] is what BLAS likes."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: str = "fp32") -> None:
        self._weight, self._bias, self.kernel = weight, bias, kernel

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class CastLinear:
    """Weights and arithmetic in a 16-bit type."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight.to(dtype).contiguous()
        self._bias = None if bias is None else bias.to(dtype)
        self._dtype = dtype
        self.kernel = str(dtype).removeprefix("torch.")

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._dtype), self._weight, self._bias).float()


class FbgemmFp16Linear:
    """fp16 weights; activations and sums in fp32."""

    kernel = "fbgemm fp16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y


class Int8Linear:
    """int8 weights with a scale per output; bf16 activations."""

    kernel = "int8 weights, bf16 activations"

    def __init__(self, quantised: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._weight, self._scales, self._bias = quantised, scales.bfloat16(), bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch._weight_int8pack_mm(rows, self._weight, self._scales).float()
        y = y if self._bias is None else y + self._bias
        return y.view(*x.shape[:-1], -1)


class Int4Linear:
    """int4 weights with a scale per group of inputs; bf16 activations."""

    kernel = f"int4 weights in groups of {INT4_GROUP}, bf16 activations"

    def __init__(self, quantised: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._packed = torch._convert_weight_to_int4pack_for_cpu(quantised, 1)
        # [groups, out, 2]: scale and the value that 8 stands for.
        pairs = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=-1)
        self._scales_and_zeros = pairs.bfloat16().contiguous()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch._weight_int4pack_mm_for_cpu(
            rows, self._packed, INT4_GROUP, self._scales_and_zeros
        ).float()
        y = y if self._bias is None else y + self._bias
        return y.view(*x.shape[:-1], -1)


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 by output: weight [out, in] -> int8 [out, in], scales [out]."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    return torch.round(weight / scales[:, None]).to(torch.int8).contiguous(), scales


def quantise_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Symmetric int4 by group of inputs: weight [out, in] -> int32 0…15 (8 is zero), scales [out, groups]."""
    grouped = weight.float().reshape(weight.shape[0], -1, group)
    scales = grouped.abs().amax(dim=2).clamp_min(1e-12) / 7
    values = torch.round(grouped / scales[..., None]).clamp(-8, 7).to(torch.int32) + 8
    return values.view(weight.shape[0], -1).contiguous(), scales
