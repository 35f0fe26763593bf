"""A weight matrix in few bits: groups of inputs, each with a scale of its own. Without torch.

The numbers are the same for every backend, to the last bit: all arithmetic is float32, each result rounded,
in the order that is written here. A scale is a float32 whose value bf16 holds exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Floats = NDArray[np.float32]
Int8s = NDArray[np.int8]

FP16_MAX = 65504.0
GROUP = 64
"""Inputs that share a scale; the last group of a row may have fewer."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""The steps that int4 tries, as parts of the one that holds the largest weight."""
_AT_ONCE = 2**17
"""Weights: so few that what is computed with them stays in the cache of a core."""


def quantise(weight: Floats, bits: Literal[4, 8]) -> tuple[Int8s, Floats]:
    """weight: [out, in] -> whole numbers [out, in] and their scales [out, groups].

    A weight is about the number times the scale of its group. Of 8 bits numbers are -127 … 127, of 4 bits
    -8 … 7.
    """
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    numbers = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, groups), np.float32)
    rows = max(1, _AT_ONCE // inputs)
    for start in range(0, outputs, rows):
        part = weight[start : start + rows]
        # Zeros after a short last group change neither its largest weight nor its error.
        padded = np.zeros((groups * GROUP, len(part)), np.float32)
        padded[:inputs] = part.T
        # [GROUP, out, groups]: the inputs of a group are apart, so that sums run over whole rows of memory.
        grouped = np.ascontiguousarray(padded.reshape(groups, GROUP, -1).transpose(1, 2, 0))
        found, scales[start : start + rows] = _int8(grouped) if bits == 8 else _int4(grouped)
        wide = found.transpose(1, 2, 0).reshape(len(part), -1)
        numbers[start : start + rows] = wide[:, :inputs]
    return numbers, scales


def dequantise(numbers: Int8s, scales: Floats) -> Floats:
    """numbers: [out, in], scales: [out, groups] -> [out, in]"""
    return numbers * np.repeat(scales, GROUP, axis=1)[:, : numbers.shape[1]]


def _int8(grouped: Floats) -> tuple[Floats, Floats]:
    """grouped: [GROUP, out, groups]; the largest weight of each group becomes 127, or a little less.

    A group of zeros has the scale 0.
    """
    scales = _up_to_bf16(np.abs(grouped).max(axis=0) / np.float32(127))
    steps = np.where(scales > 0, scales, np.float32(1))
    return np.clip(np.rint(grouped / steps), -127, 127), scales


def _int4(grouped: Floats) -> tuple[Floats, Floats]:
    """grouped: [GROUP, out, groups]; each group takes, of the steps tried, the first of the least error."""
    largest = np.abs(grouped).max(axis=0)
    # The side of the largest weight gets the eighth step.
    sign = np.where(grouped.max(axis=0) >= largest, np.float32(-1), np.float32(1))
    largest = np.maximum(largest, np.float32(1e-12))
    best, scales = np.full_like(largest, np.inf), np.zeros_like(largest)
    for shrink in SHRINKS:
        tried = _to_nearest_bf16(sign * np.float32(shrink) * largest / np.float32(8))
        error = _squared_error(grouped, tried)
        # Of weights so large that every error is infinite, the first.
        better = (error < best) | (scales == 0)
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
    return _round_int4(grouped, scales), scales


def _squared_error(grouped: Floats, scales: Floats) -> Floats:
    """grouped: [GROUP, out, groups] -> [out, groups], added up in the order of the inputs."""
    wrong = _round_int4(grouped, scales)
    with np.errstate(over="ignore"):
        wrong *= scales
        wrong -= grouped
        wrong *= wrong
        error = np.zeros_like(scales)
        for squared in wrong:
            error += squared
    return error


def _round_int4(grouped: Floats, scales: Floats) -> Floats:
    rounded = grouped / scales
    np.rint(rounded, out=rounded)
    return np.clip(rounded, -8, 7, out=rounded)


def _up_to_bf16(values: Floats) -> Floats:
    """The nearest bf16 that is not below each of ``values``, which are 0 or above."""
    bits = values.view(np.uint32)
    return (np.where(bits & 0xFFFF, bits + 0x10000, bits) & 0xFFFF0000).view(np.float32)


def _to_nearest_bf16(values: Floats) -> Floats:
    """Rounded half to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
