"""The weights of a base with an adapter, tensor by tensor: W + scaling · B A (`gpt2cli.adapter` has the
papers).

The order of every sum is fixed, and each operation is rounded by itself, so that merged weights have the same
bits on every machine, and so have the texts.
"""

from __future__ import annotations

import numpy as np

from gpt2cli.adapter import Adapter, LowRank
from gpt2cli.core.arrays import Floats, read_float32
from gpt2cli.safetensors_header import TensorInfo

_AT_ONCE = 2**15
"""Numbers that are computed at a time, so that they stay in the cache of a core."""


def merged(adapter: Adapter, name: str, weight: Floats) -> Floats:
    """The tensor ``name`` of the base, ``weight``, as the adapter changes it.

    ``adapter`` was fitted to the base (`Adapter.fitted`), and ``name`` is the base's. What it does not touch
    is returned as it is, else a new array. Raises `ModelFileError` for a NaN or an infinity, and a file that
    was cut short.
    """
    if name in adapter.replaced:
        weight = read_float32(adapter.replaced[name])
    update = adapter.updates.get(name)
    if update is None:
        return weight
    a, b = read_float32(update.a), read_float32(update.b)
    # [rows, cols] += [rows, r] [r, cols]
    left, right = (b, a) if update.layout == "linear" else (a.T, b.T)
    # Large factors may overflow; what is not finite then is found where all weights are looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        whole = _add_product(weight, left, right, np.float32(update.scaling))
        return whole if update.magnitude is None else _with_magnitude(whole, update, update.magnitude)


def _add_product(weight: Floats, left: Floats, right: Floats, scaling: np.float32) -> Floats:
    """weight [rows, cols] + scaling · left [rows, r] right [r, cols], one product added after another."""
    rows, cols = weight.shape
    result, right = np.empty_like(weight, order="C"), np.ascontiguousarray(right)
    step = max(1, _AT_ONCE // max(1, cols))
    total, term = np.empty((step, cols), np.float32), np.empty((step, cols), np.float32)
    for first in range(0, rows, step):
        part = left[first : first + step]
        sums, product = total[: len(part)], term[: len(part)]
        np.multiply(part[:, :1], right[0], out=sums)
        for n in range(1, len(right)):
            np.multiply(part[:, n, None], right[n], out=product)
            np.add(sums, product, out=sums)
        np.multiply(sums, scaling, out=sums)
        np.add(weight[first : first + step], sums, out=result[first : first + step])
    return result


def _with_magnitude(weight: Floats, update: LowRank, magnitude: TensorInfo) -> Floats:
    """DoRA: the weights of each output scaled to its length in ``magnitude`` [out]."""
    axis = 1 if update.layout == "linear" else 0
    squares = np.zeros(weight.shape[1 - axis], np.float64)
    for inputs in weight if axis == 0 else weight.T:
        # One input after another, so that the order is fixed.
        squares += np.square(inputs, dtype=np.float64)
    lengths = np.sqrt(squares).astype(np.float32)
    shortest = np.float32(np.finfo(np.float32).tiny)
    factors = (read_float32(magnitude) / np.maximum(lengths, shortest)).astype(np.float32)
    return weight * (factors if axis == 0 else factors[:, None])
