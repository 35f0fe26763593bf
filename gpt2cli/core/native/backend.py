"""A model for the library: its matrices as they lie on disk or converted, all else copied, and slots for
texts."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2cli.checkpoint import Checkpoint, ModelConfig, expected_shapes
from gpt2cli.core.arrays import as_float32
from gpt2cli.core.backend import Batch, EngineInfo, Floats
from gpt2cli.core.native.library import (
    ABI,
    ACTIVATIONS,
    F16,
    F32,
    I8,
    MAX_TOKENS,
    OUTPUTS,
    PANEL,
    PANELS,
    TYPES,
    Layer,
    Matrix,
    Model,
    instruction_set,
    library,
)
from gpt2cli.core.native.packed import (
    WORTH_KEEPING,
    Packed,
    Source,
    check_finite,
    convert,
    direct_type,
    find_packed,
    packed_path,
    sources,
    stored_type,
    write_packed,
)
from gpt2cli.core.quantise import Kind
from gpt2cli.core.tensors import Tensors, open_tensors
from gpt2cli.errors import Gpt2cliError

if TYPE_CHECKING:
    from gpt2cli.core.native import Progress

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.04, "int4": 0.75}
"""What a converted weight takes, about."""
KERNELS = {
    "fp32": "fp32",
    "fp16": "fp16 weights, fp32 sums",
    "bf16": "bf16 weights, fp32 sums",
    "int8": "int8 weights in groups of 64, activations rounded to 8 bits",
    "int4": "int4 weights in groups of 64, activations rounded to 8 bits",
}


CACHE_BYTES = {F32: 4, F16: 2, I8: 1}
"""What a number of the keys and values takes."""


def cache_type(config: ModelConfig, precision: str) -> int:
    """How keys and values are kept: at the precision of the activations.

    In int8 and int4 a token's key and value in each head are rounded to 8 bits, each with a scale of its own,
    where heads are 64 wide, as GPT-2's are.
    """
    if precision in ("int8", "int4") and config.n_embd == PANEL * config.n_head:
        return I8
    return F32 if precision == "fp32" else F16


class NativeBackend:
    """`Backend` on a CPU, by the library."""

    batch_invariant = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Kind,
        threads: int,
        converted: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = checkpoint.gpt2
        self._library = library()
        name = instruction_set()
        self._info = EngineInfo("cpu", precision, (f"native {name}, {KERNELS[precision]}",), threads)
        loaded = _Loaded(checkpoint, precision, threads, converted, progress)
        handle = self._library.gpt2_open(ctypes.byref(loaded.model), threads, name.encode())
        if not handle:
            raise Gpt2cliError("the model cannot be opened: not enough memory", hint="close other programs")
        # What the library points to lives as long as the handle.
        self._close = weakref.finalize(self, _close, self._library, handle, loaded)
        self._handle: int | None = handle

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        return self._info

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in a slot."""
        config, kind = self.config, cache_type(self.config, self._info.precision)
        scales = 4 * config.n_head if kind == I8 else 0
        return 2 * config.n_layer * (config.n_embd * CACHE_BYTES[kind] + scales)

    def new_slot(self) -> int:
        """An empty slot. Raises `Gpt2cliError` without memory."""
        slot: int = self._library.gpt2_new_slot(self._handle)
        if slot < 0:
            raise Gpt2cliError("not enough memory for another text", hint="draw fewer at a time")
        return slot

    def free_slot(self, slot: int) -> None:
        """The slot is not needed any more."""
        if self._handle is not None:
            self._library.gpt2_free_slot(self._handle, slot)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        self._library.gpt2_copy_slot(self._handle, source, target, tokens)

    def forward(self, batch: Batch) -> Floats:
        """The logits [M, V] after the wanted tokens."""
        count = len(batch)
        logits = np.empty((len(batch.wanted), self.config.vocab_size), np.float32)
        for start in range(0, count, MAX_TOKENS):
            end = min(start + MAX_TOKENS, count)
            first, last = np.searchsorted(batch.wanted, (start, end))
            wanted = np.ascontiguousarray(batch.wanted[first:last] - start, np.int32)
            parts = [
                np.ascontiguousarray(part[start:end], np.int32)
                for part in (batch.tokens, batch.slots, batch.positions)
            ]
            self._library.gpt2_forward(
                self._handle,
                end - start,
                *(part.ctypes.data for part in parts),
                len(wanted),
                wanted.ctypes.data,
                logits[first:].ctypes.data,
            )
        return logits

    def close(self) -> None:
        """Let go of weights, slots and threads; calling it again does nothing."""
        self._handle = None
        self._close()


def _close(loaded_library: ctypes.CDLL, handle: int, loaded: _Loaded) -> None:
    loaded_library.gpt2_close(handle)
    loaded.keep.clear()


class _Loaded:
    """``gpt2_model`` for a checkpoint, and all that it points to."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Kind,
        threads: int,
        converted: Path | None,
        progress: Progress | None,
    ) -> None:
        config = checkpoint.gpt2
        self.keep: list[Any] = []
        self._checkpoint, self._tensors = checkpoint, open_tensors(checkpoint)
        wanted = sources(self._tensors, expected_shapes(config), config.n_layer)
        matrices = _matrices(checkpoint, self._tensors, wanted, precision, threads, converted, progress)
        self.keep.append(matrices)
        filled = {source.name: self._matrix(source, matrices.get(source.name)) for source in wanted}
        layers = (Layer * config.n_layer)(*(self._layer(n, filled) for n in range(config.n_layer)))
        (wte, wte_type), (wpe, wpe_type) = self._table("wte.weight"), self._table("wpe.weight")
        self.model = Model(
            abi=ABI,
            size=ctypes.sizeof(Model),
            layer_size=ctypes.sizeof(Layer),
            vocab=config.vocab_size,
            positions=config.n_positions,
            width=config.n_embd,
            layers=config.n_layer,
            heads=config.n_head,
            inner=config.n_inner,
            activation=ACTIVATIONS.index(config.activation_function),
            cache_type=cache_type(config, precision),
            wte_type=wte_type,
            wpe_type=wpe_type,
            epsilon=config.layer_norm_epsilon,
            wte=wte,
            wpe=wpe,
            ln_f_weight=self._vector("ln_f.weight"),
            ln_f_bias=self._vector("ln_f.bias"),
            layer=layers,
            head=filled["lm_head.weight"],
        )
        self.keep.append(layers)

    def _layer(self, number: int, filled: dict[str, Matrix]) -> Layer:
        name = f"h.{number}"
        return Layer(
            *(
                self._vector(f"{name}.{part}")
                for part in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
            ),
            *(
                filled[f"{name}.{part}.weight"]
                for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            ),
            attention_scale=self._checkpoint.gpt2.attention_scale(number),
        )

    def _matrix(self, source: Source, packed: Packed | None) -> Matrix:
        bias = None
        if source.name != "lm_head.weight":
            bias = self._vector(source.name.removesuffix("weight") + "bias")
        if packed is not None:
            data, kind, layout = packed.array, stored_type(packed.kind), PANELS
        else:
            data, dtype = self._tensors.read(source.tensor)
            kind, layout = TYPES[dtype], source.layout
            self.keep.append(data)
        return Matrix(data.ctypes.data, bias, kind, layout, source.inputs, source.outputs)

    def _table(self, name: str) -> tuple[int, int]:
        """The address and type of embeddings, which are read row by row where they lie."""
        array, dtype = self._tensors.read(name)
        self.keep.append(array)
        return array.ctypes.data, TYPES[dtype]

    def _vector(self, name: str) -> int:
        """The address of a vector in fp32, zeros behind it up to a multiple of 64. Raises
        `ModelFileError`."""
        check_finite(self._tensors, name, self._checkpoint.directory)
        values = as_float32(*self._tensors.read(name))
        padded = np.zeros(-(-len(values) // PANEL) * PANEL, np.float32)
        padded[: len(values)] = values
        self.keep.append(padded)
        return padded.ctypes.data


def _matrices(
    checkpoint: Checkpoint,
    tensors: Tensors,
    wanted: list[Source],
    precision: Kind,
    threads: int,
    converted: Path | None,
    progress: Progress | None,
) -> dict[str, Packed]:
    """What is not multiplied as it lies in the checkpoint, in the layout of the kernels.

    Converted matrices were checked when they were made, with the embeddings; what is read in place is checked
    now.
    """
    small = checkpoint.parameters < WORTH_KEEPING
    turned = small or converted is not None
    left = [source for source in wanted if not _in_place(source, tensors, precision, small, turned)]
    for source in wanted:
        if source not in left:
            check_finite(tensors, source.tensor, checkpoint.directory)
    path = None if small or converted is None else packed_path(converted, precision)
    found = None if path is None else find_packed(path, left, precision)
    if found is not None:
        return found
    for name in ("wte.weight", "wpe.weight"):
        check_finite(tensors, name, checkpoint.directory, release=True)
    told = _telling(left, precision, progress)
    made = convert(tensors, left, precision, checkpoint.directory, threads, told)
    if path is not None and write_packed(path, made, _bytes_of(left, precision)):
        found = find_packed(path, left, precision)
    if found is None:
        made = convert(tensors, left, precision, checkpoint.directory, threads, told)
        found = {matrix.name: matrix.whole() for matrix in made}
    return found


def _in_place(source: Source, tensors: Tensors, precision: Kind, small: bool, turned: bool) -> bool:
    """Whether the matrix is multiplied where it lies.

    A large one of 16 bits is read faster panel after panel. The output head, whose rows are outputs, is worth
    turning (``turned``) where that costs little, or is kept; what an adapter changes is worth keeping, too.
    """
    if direct_type(tensors.dtype(source.tensor), precision) is None:
        return False
    if source.layout == OUTPUTS and turned:
        return False
    if tensors.is_adapted(source.tensor) and turned and not small:
        return False
    return small or precision == "fp32"


def _bytes_of(left: list[Source], precision: Kind) -> int:
    """What the matrices take when they are converted, about."""
    return round(sum(source.inputs * source.outputs for source in left) * BYTES[precision])


def _telling(left: list[Source], precision: Kind, progress: Progress | None) -> Any:
    total, done = _bytes_of(left, precision), 0

    def told(size: int) -> None:
        nonlocal done
        done = min(done + size, total)
        if progress is not None:
            progress(done, total)

    return told
