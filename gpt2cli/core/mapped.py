"""Tensors of safetensors files as views on a memory mapping, whose pages can be let go.

safetensors' own reader maps too, but keeps what was touched resident; here a model can be read, tensor by
tensor, in little more memory than one of them takes.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.errors import ModelFileError
from gpt2cli.safetensors_header import TensorInfo

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class MappedFiles:
    """Files, mapped on first use. A tensor stays valid as long as something refers to it."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, info: TensorInfo) -> Tensor:
        """The tensor of a table's entry. Raises `ModelFileError`."""
        dtype = DTYPES[info.dtype]
        if info.size == 0:
            return torch.empty(info.shape, dtype=dtype)
        mapping = self._map(info.file)
        if info.offset + info.size > len(mapping):
            raise ModelFileError(f"{info.file}: the file was cut short")
        if info.offset % dtype.itemsize == 0:
            flat = torch.frombuffer(mapping, dtype=dtype, count=math.prod(info.shape), offset=info.offset)
        else:
            # An odd header leaves the data where no kernel may read them.
            flat = torch.frombuffer(bytearray(mapping[info.offset : info.offset + info.size]), dtype=dtype)
        return flat.view(info.shape)

    def drop(self, info: TensorInfo) -> None:
        """Let go of the tensor's pages; they are read again from the file should it be used."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if info.file in self._maps and length > 0:
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, first, length)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    # A private mapping: nothing is written, and torch takes it for writable.
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{path}: {error}") from None
        return self._maps[path]
