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
"""Of rounded activations: fbgemm's own bound."""


class Linear(Protocol):
    """One weight matrix, ready to multiply."""

    kernel: str

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in] fp32 -> [..., out] fp32"""
        ...


def make_linear(matrix: Matrix, bias: Tensor | None, floor: float | None = None) -> Linear:
    """The kernel for a matrix in the precision that it is stored in, on the device where it is.

    ``floor`` is a value below which no activation lies, where one is known.
    """
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
        if on_cpu and has_fbgemm() and torch.cpu._is_vnni_supported() and values.shape[1] > 1:
            return FbgemmInt8Linear(values, matrix.scales, bias, floor)
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
    def weights(self) -> int:
        """How many there are."""
        return self._shape.numel()

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
        weight = self._weight
        if weight is not None:
            return self._cold(x, weight)
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
    divided by the range of each, and a row of the full range is added: by that the step is the same for all.
    A single row is rounded by fbgemm alone, between its lowest and its highest value; several between
    ``floor``, below which no activation lies, and the highest of each row, or else evenly about zero.
    """

    kernel = "fbgemm int8, activations rounded to 8 bits by row"

    def __init__(
        self, quantised: Tensor, scales: Tensor, bias: Tensor | None, floor: float | None = None
    ) -> None:
        self._packed = _prepack_int8(quantised, scales, None)
        self._bias, self._floor = bias, floor
        self._full_range = scales.new_zeros(1, quantised.shape[1])
        self._full_range[0, :2] = torch.tensor([-128 / 127, 1.0] if floor is None else [0.0, 1.0])
        # What a product of several rows is added to: the floor that was taken away comes back with it.
        self._added = scales.new_zeros(len(scales)) if bias is None else bias
        if floor is not None:
            self._added = self._added + floor * scales * quantised.sum(dim=1, dtype=torch.float32)
        self._multiply = torch.ops.quantized.linear_dynamic.default

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor
        if x.numel() == x.shape[-1]:
            y = self._multiply(x, self._packed)
            return y if self._bias is None else y.add_(self._bias)
        y = self._several(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], -1)

    def _several(self, x: Tensor) -> Tensor:
        rows, inputs = x.shape
        whole = x.new_empty(rows + 1, inputs)
        whole[-1:] = self._full_range
        scaled = whole[:-1]
        if self._floor is None:
            span = x.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST_STEP * 127)
            torch.div(x, span, out=scaled)
        else:
            span = x.amax(dim=-1, keepdim=True).sub_(self._floor).clamp_(min=_SMALLEST_STEP * 255)
            torch.sub(x, self._floor, out=scaled).div_(span)
        return torch.addcmul(self._added, self._multiply(whole, self._packed)[:-1], span)


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
