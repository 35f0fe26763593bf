"""The matrix kernels: y = x Wᵀ + b for one weight, per precision and device, behind one call.

Activations go in and come out in fp32, whatever the kernel computes in. No kernel lets one row of a
batch change another's result. The packed operators of torch are semi-private: nothing outside this
file names them, and where one is missing `make_linear` falls back to plain arithmetic on weights rounded
to the precision asked for, and says so in ``kernel``.

A weight reaches `make_linear` as a `Matrix`, the form in which it may also lie in a file
(`core/quantise.py`).
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.core.quantise import INT4_GROUP, Matrix, unpack_int4

COLD_WEIGHTS = 1024 * 768
"""Weights that a product with unpacked fp16 widens at a time: what fits a core's cache."""


_SMALLEST_STEP = 6.1e-5
"""fbgemm's own bound."""


class Linear(Protocol):
    """One weight matrix, ready to multiply."""

    kernel: str

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] fp32 -> [..., out] fp32"""
        ...


def make_linear(matrix: Matrix, bias: Tensor | None) -> Linear:
    """The kernel for a matrix in the precision that it is stored in, on the device where it is."""
    values, on_cpu = matrix.values, matrix.values.device.type == "cpu"
    if matrix.kind == "fp32":
        return _make_plain(values, bias)
    if matrix.kind == "bf16" or (matrix.kind == "fp16" and not on_cpu):
        return _make_16_bit(values, bias)
    if matrix.kind == "fp16":
        if has_fbgemm():
            return FbgemmFp16Linear(values, bias)
        return _make_plain(values.float(), bias, "weights rounded to fp16")
    assert matrix.scales is not None
    if matrix.kind == "int8":
        if on_cpu and has_fbgemm() and torch.cpu._is_vnni_supported():
            return FbgemmInt8Linear(values, matrix.scales, bias)
        if on_cpu and values.shape[1] % 16 == 0:
            return Int8Linear(values, matrix.scales, bias)
        return _make_plain(values * matrix.scales[:, None], bias, "weights rounded to int8")
    unpacked = unpack_int4(values)
    if on_cpu and values.shape[0] % 16 == 0:
        return Int4Linear(unpacked, matrix.scales, bias)
    grouped = (unpacked - 8).view(len(unpacked), -1, INT4_GROUP) * matrix.scales.float()[..., None]
    return _make_plain(grouped.view(len(unpacked), -1), bias, "weights rounded to int4")


def has_fbgemm() -> bool:
    """Whether this torch and processor have fbgemm's packed products."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _has_onednn(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _make_plain(weight: Tensor, bias: Tensor | None, note: str = "") -> Linear:
    """fp32 throughout."""
    weight, note = weight.float(), f", {note}" if note else ""
    if weight.device.type == "cpu" and _has_onednn(torch.float32):
        return OneDnnLinear(weight, bias, f"oneDNN fp32{note}")
    return PlainLinear(weight, bias, f"fp32{note}")


def _make_16_bit(weight: Tensor, bias: Tensor | None) -> Linear:
    name = str(weight.dtype).removeprefix("torch.")
    bias = None if bias is None else bias.to(weight.dtype)
    if weight.device.type == "cpu" and _has_onednn(torch.bfloat16):
        return OneDnnLinear(weight, bias, f"oneDNN {name}")
    return PlainLinear(weight.contiguous(), bias, name)


class PlainLinear:
    """torch's own product, in the weight's type. A transposed view of the weight costs nothing."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: str) -> None:
        self._weight, self._bias, self.kernel = weight, bias, kernel

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._weight.dtype), self._weight, self._bias).float()


class OneDnnLinear:
    """fp32 or bf16 weights in the blocked layout of oneDNN, arithmetic in that type with sums in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: str) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous(), 1)
        self._dtype, self._bias, self.kernel = weight.dtype, bias, kernel
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._multiply(x.to(self._dtype), self._packed, self._bias, "none", [], "")
        return y.float()


class FbgemmFp16Linear:
    """fp16 weights; activations and sums in fp32.

    Packing costs as much as some hundred products, so that until `pack` a product widens the fp16 values,
    which may be mapped from a file, a slice at a time: the same numbers and the same arithmetic.
    """

    kernel = "fbgemm fp16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor | None = weight
        self._bias, self._shape = bias, weight.shape
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    @property
    def packed(self) -> bool:
        """Whether `pack` was called."""
        return self._weight is None

    def pack(self) -> None:
        """Bring the weight into fbgemm's layout; what it was made from is let go."""
        if self._weight is not None:
            self._packed = _prepack_fp16(self._weight.float().contiguous(), self._bias)
            self._weight = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._weight is not None:
            return self._cold(x, self._weight)
        y: Tensor = self._multiply(x, self._packed)
        return y

    def _cold(self, x: Tensor, weight: Tensor) -> Tensor:
        outputs, inputs = self._shape
        rows = x.reshape(-1, inputs)
        y = x.new_empty(len(rows), outputs)
        at_once = max(1, COLD_WEIGHTS // inputs)
        scratch = x.new_empty(at_once, inputs)
        for start in range(0, outputs, at_once):
            part = weight[start : start + at_once]
            wide = scratch[: len(part)].copy_(part)
            torch.mm(rows, wide.t(), out=y[:, start : start + at_once])
        y = y if self._bias is None else y.add_(self._bias)
        return y.view(*x.shape[:-1], outputs)


class FbgemmInt8Linear:
    """int8 weights with a scale per output; activations rounded to 8 bits, by a step of each row's own.

    fbgemm rounds all rows of a call by one step, over the range of them all. So several rows are first
    brought to whole numbers, each by the step that fbgemm would choose for it alone, and a row of the
    full range, 0 to 255, is added: by that the step of the call is exactly 1. The sums of a row are then
    those it has alone, up to the last bits; but the next product rounds its activations again, and what
    differs in the last bit may fall on the other side of a step.
    """

    kernel = "fbgemm int8, activations rounded to 8 bits by row"

    def __init__(self, quantised: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._packed = _prepack_int8(quantised, scales, bias)
        sums = quantised.sum(dim=1, dtype=torch.float32) * scales
        # What the product of several rows has too much: [2, out].
        self._excess = torch.stack([sums, sums.new_zeros(len(sums)) if bias is None else bias])
        self._bias = bias
        self._multiply = torch.ops.quantized.linear_dynamic.default

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor
        if x.numel() == x.shape[-1]:
            y = self._multiply(x, self._packed)
            return y
        y = self._several(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], -1)

    def _several(self, x: Tensor) -> Tensor:
        rows, inputs = x.shape
        low, high = torch.aminmax(x, dim=-1, keepdim=True)
        low, high = low.clamp_(max=0), high.clamp_(min=0)
        # step, zero: [rows, 1]
        step = (high - low).mul_(1 / 255).clamp_(min=_SMALLEST_STEP)
        zero = torch.round(low / step).neg_()
        whole = x.new_empty(rows + 1, inputs)
        torch.addcdiv(zero, x, step, out=whole[:rows]).clamp_(0, 255)
        whole[rows] = 0
        whole[rows, 0] = 255
        product = self._multiply(whole, self._packed)[:rows]
        product.addmm_(torch.cat([zero, torch.ones_like(zero)], dim=1), self._excess, alpha=-1)
        return product.mul_(step) if self._bias is None else torch.addcmul(self._bias, product, step)


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

    def __init__(self, unpacked: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._packed = torch._convert_weight_to_int4pack_for_cpu(unpacked, 1)
        # [groups, out, 2]: scale and the value that 8 stands for.
        pairs = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=-1)
        self._scales_and_zeros = pairs.bfloat16().contiguous()
        self._bias = bias
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = self._multiply(rows, self._packed, INT4_GROUP, self._scales_and_zeros)
        y = y.float() if self._bias is None else y + self._bias
        return y.view(*x.shape[:-1], -1)


def _prepack_fp16(weight: Tensor, bias: Tensor | None) -> torch.ScriptObject:
    with _FBGEMM:
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return packed


def _prepack_int8(quantised: Tensor, scales: Tensor, bias: Tensor | None) -> torch.ScriptObject:
    with warnings.catch_warnings(action="ignore"), _FBGEMM:
        # Quantised tensors are deprecated; the packed product takes nothing else.
        zeros = torch.zeros(len(scales), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(quantised, scales.double(), zeros, 0)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(weight, bias)
    return packed


class _Fbgemm:
    """Has torch pack for fbgemm while it is entered: the choice is global, and the caller's to keep."""

    def __enter__(self) -> None:
        self._before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self._before


_FBGEMM = _Fbgemm()
