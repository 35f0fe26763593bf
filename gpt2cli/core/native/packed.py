"""Matrices in the layout that the kernels read: converted once, kept in one file per model and precision,
mapped.

The file is safetensors: each matrix under its canonical name, the output head as ``lm_head.weight`` also
where it is tied. A matrix [in, out] is cut into panels of 64 outputs, the last filled up with zeros: ``F32``,
``F16`` or ``BF16`` [panels, in, 64]; in int8 and int4 ``U8`` [panels, groups, bytes], for each group of 64
inputs its values and then 64 scales in bf16 (``src/convert.c``). A file of the same name with ``.sha256``
holds its hash. All else of a model is read from the checkpoint itself.

What does not have every matrix in its shape, or a byte too few or too many, is not used, and made again.
Files are replaced and removed as a whole, and never written into: who has one mapped keeps what it was. Only
where somebody else cuts a file short while it is mapped is the process ended, by SIGBUS (on Unix), as soon as
it reads what is gone; it is the same with a checkpoint's own file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpt2cli.core.arrays import Array
from gpt2cli.core.native.library import F32, GROUP, INPUTS, OUTPUTS, PANEL, TYPES, library
from gpt2cli.core.quantise import FP16_MAX, Kind
from gpt2cli.core.tensors import Tensors
from gpt2cli.errors import ModelFileError
from gpt2cli.safetensors_header import TensorInfo, read_header

FORMAT = 2
WORTH_KEEPING = 16_000_000
"""Weights under which a model is converted in memory each time, in a tenth of a second."""

KINDS: dict[Kind, int] = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4}
"""As ``gpt2_type`` numbers them."""
_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "U8", "int4": "U8"}
_GROUP_BYTES = {"int8": GROUP * PANEL + 2 * PANEL, "int4": GROUP * PANEL // 2 + 2 * PANEL}
_SPARE_BYTES = 2**28
_AT_ONCE = 2**23
"""Numbers of a matrix that are checked or converted at a time."""
_HEADER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix of a checkpoint: under which name it is kept, where it is read, and its shape [in, out]."""

    name: str
    tensor: str
    inputs: int
    outputs: int
    layout: int
    """``INPUTS`` as Conv1D has it, or ``OUTPUTS`` as embeddings do."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A matrix on its way from a checkpoint: ``parts`` are its panels in order, a few at a time."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    parts: Iterator[Array]

    def whole(self) -> Packed:
        """All panels in memory."""
        array, at = np.empty(self.shape, _dtype(self.kind)), 0
        for part in self.parts:
            array[at : at + len(part)] = part
            at += len(part)
        return Packed(self.kind, array)


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in panels; ``array`` keeps its memory alive."""

    kind: Kind
    array: Array


def sources(tensors: Tensors, config_shapes: Mapping[str, tuple[int, ...]], layers: int) -> list[Source]:
    """The matrices of a model in the order of the computation."""
    found = []
    for layer in range(layers):
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            name = f"h.{layer}.{part}.weight"
            inputs, outputs = config_shapes[name]
            found.append(Source(name, name, inputs, outputs, INPUTS))
    outputs, inputs = config_shapes["wte.weight"]
    return [*found, Source("lm_head.weight", tensors.head_name(), inputs, outputs, OUTPUTS)]


def kind_of(source: Source, precision: Kind, largest: float) -> Kind:
    """The precision that a matrix is kept in when ``precision`` is asked for.

    fp16 cannot hold what is over 65,504; the output head stays at 8 bits where 4 are asked for: it costs
    little time, and much less is lost.
    """
    if precision == "fp16" and largest > FP16_MAX:
        return "fp32"
    return "int8" if precision == "int4" and source.name == "lm_head.weight" else precision


def _dtype(kind: Kind) -> np.dtype[Any]:
    """How numpy holds the stored array."""
    return np.dtype({"F32": np.float32, "U8": np.uint8}.get(_STORED[kind], np.uint16))


def packed_shape(source: Source, kind: Kind) -> tuple[int, ...]:
    """The shape of the stored array."""
    panels = -(-source.outputs // PANEL)
    if kind in _GROUP_BYTES:
        return (panels, -(-source.inputs // GROUP), _GROUP_BYTES[kind])
    return (panels, source.inputs, PANEL)


def check_finite(tensors: Tensors, name: str, directory: Path, release: bool = False) -> float:
    """The largest magnitude in a tensor. Raises `ModelFileError`, naming it, for NaN and infinity.

    With ``release`` the pages of a large tensor are let go of as they have been read.
    """
    array, dtype = tensors.read(name)
    flat, largest, found = array.reshape(-1), 0.0, ctypes.c_float()
    for first in range(0, len(flat), _AT_ONCE):
        part = flat[first : first + _AT_ONCE]
        if not library().gpt2_finite(TYPES[dtype], part.size, part.ctypes.data, ctypes.byref(found)):
            raise ModelFileError(f"{directory}: {name} contains NaN or infinity")
        largest = max(largest, found.value)
        if release and len(flat) > _AT_ONCE:
            tensors.drop(name)
    return largest


def pack(tensors: Tensors, source: Source, kind: Kind, threads: int) -> Iterator[Array]:
    """Convert one matrix; the parts together have the shape of `packed_shape`.

    Of a large matrix little is in memory at a time, and its pages are let go of.
    """
    panels, *rest = packed_shape(source, kind)
    step = max(1, _AT_ONCE // (source.inputs * PANEL))
    for first in range(0, panels, step):
        part = np.empty((min(step, panels - first), *rest), _dtype(kind))
        _pack_panels(tensors, source, kind, threads, first, part)
        tensors.drop(source.tensor)
        yield part


def _pack_panels(
    tensors: Tensors, source: Source, kind: Kind, threads: int, offset: int, target: Array
) -> None:
    """Convert the panels from ``offset`` on into ``target``."""
    array, dtype = tensors.read(source.tensor)

    def run(first: int, last: int) -> None:
        library().gpt2_convert(
            KINDS[kind],
            source.inputs,
            source.outputs,
            TYPES[dtype],
            source.layout,
            array.ctypes.data,
            offset + first,
            offset + last,
            target[first:].ctypes.data,
        )

    edges = [len(target) * n // threads for n in range(threads + 1)]
    others = [threading.Thread(target=run, args=pair) for pair in itertools.pairwise(edges[1:])]
    for other in others:
        other.start()
    run(0, edges[1])
    for other in others:
        other.join()


def packed_path(stem: Path, precision: Kind) -> Path:
    """Where the matrices of the model that ``stem`` stands for lie in ``precision``."""
    return stem.with_name(f"{stem.name}.{precision}-v{FORMAT}.safetensors")


def find_packed(path: Path, wanted: Iterable[Source], precision: Kind) -> dict[str, Packed] | None:
    """The matrices of a file, as views on its mapping; None where there is none that holds all of them
    whole."""
    try:
        table = read_header(path)
        kinds = {source.name: _stored_kind(table[source.name], source, precision) for source in wanted}
        mapping = np.memmap(path, np.uint8, "r")
        found = {name: Packed(kind, _view(mapping, table[name], kind)) for name, kind in kinds.items()}
    except (ModelFileError, OSError, KeyError, ValueError):
        return None
    # The last use, for `gc`; a cache that is only readable serves all the same.
    with contextlib.suppress(OSError):
        for used in (path, _sidecar(path)):
            os.utime(used)
    return found


def _stored_kind(info: TensorInfo, source: Source, precision: Kind) -> Kind:
    """Raises `KeyError` unless the entry is the matrix in one of the precisions that it may have."""
    for kind in (kind_of(source, precision, 0.0), kind_of(source, precision, math.inf)):
        if info.dtype == _STORED[kind] and info.shape == packed_shape(source, kind):
            return kind
    raise KeyError(source.name)


def _view(mapping: np.memmap[tuple[int], np.dtype[np.uint8]], info: TensorInfo, kind: Kind) -> Array:
    if info.offset + info.size > len(mapping):
        raise ValueError(f"{info.file}: the file was cut short")
    return np.frombuffer(mapping, _dtype(kind), math.prod(info.shape), info.offset).reshape(info.shape)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_packed(path: Path, matrices: Iterable[Converted], size: int) -> bool:
    """Write ``matrices``, one at a time, whole or not at all; whether it was done.

    ``size`` is what they take in bytes, about. A disk that is full or cannot be written to is no error: the
    conversion is then paid for each time. Whoever may read the folder may read the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size + _SPARE_BYTES:
            return False
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".incoming-", delete=False) as file:
            try:
                digest = _write(file, matrices)
                os.chmod(file.name, 0o666 & ~_umask())
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


def _umask() -> int:
    # As in `files`, which is none of the core's business.
    current = os.umask(0o077)
    os.umask(current)
    return current


def _write(file: IO[bytes], matrices: Iterable[Converted]) -> str:
    """The matrices' bytes, then their table in the space left for it; the sha256 of the file."""
    table: dict[str, object] = {}
    # The table is written last, and stands first: its place is filled up with spaces.
    file.seek(_HEADER_BYTES)
    at = 0
    for matrix in matrices:
        start = at
        for part in matrix.parts:
            at += file.write(part.reshape(-1).view(np.uint8).data)
        table[matrix.name] = {
            "dtype": _STORED[matrix.kind],
            "shape": list(matrix.shape),
            "data_offsets": [start, at],
        }
    header = json.dumps(table).encode("ascii")
    space = _HEADER_BYTES - 8
    if len(header) > space:
        raise OSError("too many tensors for the table")
    file.seek(0)
    file.write(space.to_bytes(8, "little") + header.ljust(space))
    file.flush()
    os.fsync(file.fileno())
    with open(file.name, "rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def convert(
    tensors: Tensors,
    wanted: Iterable[Source],
    precision: Kind,
    directory: Path,
    threads: int,
    told: Callable[[int], None],
) -> Iterator[Converted]:
    """Every matrix in ``precision``, one after another: the parts of one are taken before the next is asked
    for.

    ``told`` gets the bytes of each part. Raises `ModelFileError`.
    """
    for source in wanted:
        kind = kind_of(source, precision, check_finite(tensors, source.tensor, directory, release=True))
        parts = _told(pack(tensors, source, kind, threads), told)
        yield Converted(source.name, kind, packed_shape(source, kind), parts)
        tensors.forget(source.tensor)


def _told(parts: Iterator[Array], told: Callable[[int], None]) -> Iterator[Array]:
    for part in parts:
        yield part
        told(part.nbytes)


def stored_type(kind: Kind) -> int:
    """The number of a precision in ``gpt2_type``."""
    return KINDS[kind]


def direct_type(dtype: str, precision: Kind) -> int | None:
    """The type in which a matrix can be multiplied as it lies in the checkpoint; None where it has to be
    converted.

    Numbers must be exactly those of the precision that was asked for.
    """
    if precision == "fp32" or {"F16": "fp16", "BF16": "bf16"}.get(dtype) == precision:
        return TYPES[dtype]
    return None


assert KINDS["fp32"] == F32
