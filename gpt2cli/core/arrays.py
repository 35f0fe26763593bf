"""The numbers of checkpoints in numpy, which has no bf16: such an array is one of uint16, its bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2cli.errors import ModelFileError
from gpt2cli.options import shown
from gpt2cli.safetensors_header import TensorInfo

Array = NDArray[Any]
Floats = NDArray[np.float32]

TYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""How the types of weights (`checkpoint.WEIGHT_TYPES`) are held."""

_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""The bits of infinity; without the sign, those of every NaN are above, of every number below."""
_CHECKED_AT_ONCE = 2**17


def as_float32(array: Array, dtype: str) -> Floats:
    """The numbers of an array as `Tensors.read` gives it; the array itself where it is fp32 already."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def is_finite(array: Array, dtype: str) -> bool:
    """Whether an array as `Tensors.read` gives it has neither NaN nor infinity."""
    unsigned = np.dtype(f"u{array.itemsize}")
    bits = np.ascontiguousarray(array).reshape(-1).view(unsigned)
    magnitude = unsigned.type(2 ** (8 * array.itemsize - 1) - 1)
    # In parts that stay in the cache of a core.
    parts = (bits[at : at + _CHECKED_AT_ONCE] for at in range(0, len(bits), _CHECKED_AT_ONCE))
    return all(int((part & magnitude).max()) < _INFINITY[dtype] for part in parts)


def read_float32(info: TensorInfo) -> Floats:
    """A small tensor in fp32, read at once. Raises `ModelFileError`, also for NaN and infinity, naming it."""
    dtype = np.dtype(TYPES[info.dtype])
    try:
        array = np.fromfile(info.file, dtype, count=info.size // dtype.itemsize, offset=info.offset)
    except OSError as error:
        raise ModelFileError(f"{info.file}: {error.strerror or error}") from None
    if array.nbytes != info.size:
        raise ModelFileError(f"{info.file}: the file was cut short")
    if not is_finite(array, info.dtype):
        raise ModelFileError(f"{info.file}: {shown(info.key)} contains NaN or infinity")
    return as_float32(array, info.dtype).reshape(info.shape)
