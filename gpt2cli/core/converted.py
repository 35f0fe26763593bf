"""Converted weights in a file, so that a conversion is paid for once.

The file is safetensors: each matrix under its canonical name, transposed to [out, in], with ``.scales``
beside it where it has some; the tied head under its own name, ``lm_head.weight``. A file of the same name
with ``.sha256`` holds its hash. Everything else of a model is read from the checkpoint itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from gpt2cli.core.mapped import DTYPES
from gpt2cli.core.quantise import INT4_GROUP, Kind, Matrix
from gpt2cli.errors import ModelFileError
from gpt2cli.safetensors_header import TensorInfo, read_header

FORMAT = 1
WORTH_KEEPING = 16_000_000
"""Weights under which a model is converted in memory each time, in a tenth of a second."""
_KINDS: dict[str, Kind] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "int4"}
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SPARE_BYTES = 2**28


def converted_path(stem: Path, precision: Kind) -> Path:
    """Where the weights of the model that ``stem`` stands for lie in ``precision``."""
    group = f"-g{INT4_GROUP}" if precision == "int4" else ""
    return stem.with_name(f"{stem.name}.{precision}{group}-v{FORMAT}.safetensors")


def find_converted(path: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, TensorInfo] | None:
    """The tensor table of a converted file; None where there is none that holds all of ``shapes``.

    ``shapes`` are those of the matrices [out, in].
    """
    try:
        table = read_header(path)
        for name, shape in shapes.items():
            _check_entry(table, name, shape)
    except (ModelFileError, OSError, KeyError):
        return None
    # The last use, for `gc`; a cache that is only readable serves all the same.
    with contextlib.suppress(OSError):
        for used in (path, _sidecar(path)):
            os.utime(used)
    return table


def _check_entry(table: dict[str, TensorInfo], name: str, shape: tuple[int, int]) -> None:
    """Raise `KeyError` unless the table has the matrix ``name`` in one of the forms of `Matrix`."""
    values = table[name]
    kind = _KINDS[values.dtype]
    wanted = (shape[0], shape[1] // 2) if kind == "int4" else shape
    scales = {"int8": shape[:1], "int4": (shape[0], shape[1] // INT4_GROUP)}.get(kind)
    if values.shape != wanted or (scales is not None and table[f"{name}.scales"].shape != scales):
        raise KeyError(name)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def matrix_of(values: Tensor, scales: Tensor | None) -> Matrix:
    """The matrix that a converted file's tensors are."""
    return Matrix(_KINDS[_TYPE_NAMES[values.dtype]], values, scales)


def write_converted(path: Path, matrices: Iterable[tuple[str, Matrix]], size: int) -> bool:
    """Write ``matrices``, one at a time, whole or not at all; whether it was done.

    ``size`` is what they take in bytes, about. A disk that is full or cannot be written to is no error:
    the conversion is then paid for each time.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size + _SPARE_BYTES:
            return False
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".incoming-", delete=False) as file:
            try:
                digest = _write(file, matrices)
                file.close()
                _sidecar(path).write_text(f"{digest}\n", "ascii")
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError:
        return False
    return True


def _write(file: IO[bytes], matrices: Iterable[tuple[str, Matrix]]) -> str:
    """The tensors' bytes, then their table in the space left for it; the sha256 of the file."""
    table: dict[str, object] = {}
    # The table is written last, and stands first: its place is filled up with spaces.
    space = 2**20
    file.seek(8 + space)
    at = 0
    for name, matrix in matrices:
        for key, tensor in ((name, matrix.values), (f"{name}.scales", matrix.scales)):
            if tensor is None:
                continue
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            file.write(data.data)
            table[key] = {
                "dtype": _TYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + data.nbytes],
            }
            at += data.nbytes
    header = json.dumps(table).encode("ascii")
    if len(header) > space:
        raise OSError("too many tensors for the table")
    file.seek(0)
    file.write(space.to_bytes(8, "little") + header.ljust(space))
    file.flush()
    os.fsync(file.fileno())
    with open(file.name, "rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()
