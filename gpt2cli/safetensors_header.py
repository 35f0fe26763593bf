"""The header of a safetensors file: which tensors it has, checked without reading one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import ModelFileError
from gpt2cli.options import MAX_WHOLE, shown
from gpt2cli.untrusted import open_file, parse_json

MAX_HEADER_BYTES = 8 * 2**20
MAX_DIMENSIONS = 8
BYTES_OF_TYPE = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4}
BYTES_OF_TYPE |= {"F64": 8, "I64": 8}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: where it is and what it looks like.

    ``offset`` and ``size`` are in bytes, from the beginning of the file.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensor table of a safetensors file, under the file's own keys.

    Raises `ModelFileError` unless the header lies within the file, has no key twice, and its tensors
    tile the rest of the file exactly.
    """
    with open_file(path) as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ModelFileError(f"{path}: not a safetensors file (its header does not fit the file)")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for key, entry in header.items():
        info = tensors[key] = _read_entry(key, entry, path, 8 + length)
        spans.append((info.offset, info.offset + info.size))
    end = 8 + length
    for begin, stop in sorted(spans):
        if begin != end:
            raise ModelFileError(f"{path}: its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise ModelFileError(f"{path}: the file is cut short or has data after its tensors")
    return tensors


def _read_entry(key: str, entry: Any, path: Path, data: int) -> TensorInfo:
    try:
        dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        # Bounded, since the product of a shape of huge numbers would take for ever.
        sizes = all(type(n) is int and 0 <= n <= MAX_WHOLE for n in (*shape, begin, stop))
        if not sizes or len(shape) > MAX_DIMENSIONS or not isinstance(dtype, str):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ModelFileError(f"{path}: the header entry of {shown(key)} is malformed") from None
    if dtype not in BYTES_OF_TYPE:
        raise ModelFileError(f"{path}: {shown(key)} is of type {shown(dtype)}, which is not known")
    if stop - begin != math.prod(shape) * BYTES_OF_TYPE[dtype]:
        raise ModelFileError(f"{path}: {shown(key)} has not as many bytes as its shape asks for")
    return TensorInfo(path, key, dtype, shape, data + begin, stop - begin)
