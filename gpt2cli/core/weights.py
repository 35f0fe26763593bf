"""A checkpoint's tensors, ready for the model: the layout on disk is resolved here and nowhere else."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint, ModelConfig, canonical_name, check_shapes
from gpt2cli.core.converted import (
    WORTH_KEEPING,
    converted_path,
    find_converted,
    matrix_of,
    write_converted,
)
from gpt2cli.core.linear import FbgemmFp16Linear, Linear, make_linear
from gpt2cli.core.mapped import MappedFiles
from gpt2cli.core.quantise import Kind, Matrix, to_matrix
from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.safetensors_header import TensorInfo

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
_FLOORS = {"gelu_new": -0.1701, "gelu": -0.17, "relu": 0.0, "silu": -0.2785, "tanh": -1.0}
"""Just below the lowest value of each activation function."""
PACKED_AT_LOAD = 8_000_000
"""Weights under which nothing is gained by packing later."""
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm's parameters, [n_embd] fp32 each."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer."""

    ln_1: Norm
    c_attn: Linear
    c_proj: Linear
    ln_2: Norm
    mlp_fc: Linear
    mlp_proj: Linear


@dataclass(slots=True)
class Weights:
    """All of a model. ``wte`` [vocab, n_embd] stays in the type it has on disk; ``wpe`` is fp32."""

    wte: Tensor
    wpe: Tensor
    blocks: tuple[Block, ...]
    ln_f: Norm
    head: Linear
    precision: str
    kernels: tuple[str, ...]
    _unpacked: list[tuple[FbgemmFp16Linear, Callable[[], None]]] = field(default_factory=list)

    @property
    def packed(self) -> bool:
        """Whether `pack` has nothing left to do."""
        return not self._unpacked

    def pack(self, at_least: int | None = None) -> None:
        """Bring matrices of ``at_least`` so many weights, or all, into the layout of the fastest kernel.

        The numbers stay as they are; sums may differ in the last bit. Each matrix costs as much as some
        hundred products with it, about 13 ns a weight. What is packed is counted and not timed, so that the
        same request to a new process gives the same text, near-ties included.
        """
        left = at_least
        while self._unpacked and (left is None or left > 0):
            linear, let_go = self._unpacked.pop()
            linear.pack()
            let_go()
            left = None if left is None else left - linear.weights


def load_weights(
    checkpoint: Checkpoint, precision: Kind, device: torch.device, converted: Path | None = None
) -> Weights:
    """Read and prepare every tensor. ``precision`` is one of fp32, fp16, bf16, int8, int4.

    With ``converted`` (`LoadOptions.converted`) a conversion is kept there and found again. Raises
    `ModelFileError` for a NaN or an infinity, naming the tensor.
    """
    source: _Source = _Pickled(checkpoint) if checkpoint.pickles else _Mapped(checkpoint)
    if precision != "fp32":
        source = _with_converted(checkpoint, source, precision, converted)
    return _build(checkpoint.config, source, precision, device)


class _Source:
    """Where a model's tensors come from: vectors and embeddings, and matrices [out, in] in a precision."""

    is_converted = False
    """Whether matrices are views on a file in the precision asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, name: str) -> Tensor | None:
        """A tensor as it is in the checkpoint, None where there is none."""
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """The tensor is not needed any more."""

    def table(self, name: str) -> Tensor:
        """The embeddings ``name``, in the type that they have on disk."""
        return self._finite(name)

    def vector(self, name: str) -> Tensor:
        """A tensor that is kept as it is, in fp32."""
        return self._finite(name).float().clone()

    def matrix(self, name: str, precision: Kind) -> Matrix:
        """A matrix; ``lm_head.weight`` is that of the embeddings where the head is tied."""
        if name == "lm_head.weight":
            return to_matrix(self._finite(self._head_name()), precision)
        # Conv1D keeps [in, out]; the view costs nothing.
        return to_matrix(self._finite(name).t(), precision)

    def _head_name(self) -> str:
        head = self.read("lm_head.weight")
        # As in transformers: a head that differs from the embeddings is used, whatever the config says.
        tied = head is None or (
            self._checkpoint.config.tie_word_embeddings and torch.equal(head, self._finite("wte.weight"))
        )
        return "wte.weight" if tied else "lm_head.weight"

    def _finite(self, name: str) -> Tensor:
        tensor = self.read(name)
        assert tensor is not None, name
        low, high = torch.aminmax(tensor)
        # A NaN anywhere makes both NaN.
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelFileError(f"{self._checkpoint.directory}: {name} contains NaN or infinity")
        return tensor


class _Pickled(_Source):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._tensors = read_pickles(checkpoint)

    def read(self, name: str) -> Tensor | None:
        return self._tensors.get(name)


class _Mapped(_Source):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._files = MappedFiles()

    def read(self, name: str) -> Tensor | None:
        info = self._checkpoint.tensors.get(name)
        return None if info is None else self._files.read(info)

    def drop(self, name: str) -> None:
        info = self._checkpoint.tensors.get(name)
        if info is not None:
            self._files.drop(info)


class _Converted(_Source):
    """Matrices from a converted file, the rest from the checkpoint; all was checked when it was made."""

    is_converted = True

    def __init__(self, checkpoint: Checkpoint, rest: _Source, table: Mapping[str, TensorInfo]) -> None:
        super().__init__(checkpoint)
        self._rest, self._table, self._files = rest, table, MappedFiles()

    def read(self, name: str) -> Tensor | None:
        return self._rest.read(name)

    def table(self, name: str) -> Tensor:
        found = self._rest.read(name)
        assert found is not None
        return found

    def matrix(self, name: str, precision: Kind) -> Matrix:
        scales = self._table.get(f"{name}.scales")
        values = self._files.read(self._table[name])
        return matrix_of(values, None if scales is None else self._files.read(scales))

    def drop(self, name: str) -> None:
        self._files.drop(self._table[name]) if name in self._table else self._rest.drop(name)


def _with_converted(
    checkpoint: Checkpoint, source: _Source, precision: Kind, converted: Path | None
) -> _Source:
    """``source`` with the matrices of a converted file, which is made if it is worth it."""
    if converted is None or checkpoint.config.parameters < WORTH_KEEPING:
        return source
    path = converted_path(converted, precision)
    shapes = _matrix_shapes(checkpoint.config)
    table = find_converted(path, shapes)
    if table is None:
        size = round(checkpoint.config.parameters * BYTES_PER_WEIGHT[precision])
        if not write_converted(path, _convert(source, shapes, precision), size):
            return source
        table = find_converted(path, shapes)
    return source if table is None else _Converted(checkpoint, source, table)


def _convert(
    source: _Source, shapes: Mapping[str, tuple[int, int]], precision: Kind
) -> Iterator[tuple[str, Matrix]]:
    for name in shapes:
        yield name, source.matrix(name, _precision_of(name, precision))
        source.drop("wte.weight" if name == "lm_head.weight" else name)


def _precision_of(name: str, precision: Kind) -> Kind:
    """The head is kept in int8 where int4 is asked for: it costs no more time, and much less is lost."""
    return "int8" if precision == "int4" and name == "lm_head.weight" else precision


def _matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of a model with their shapes [out, in], in the order of the computation."""
    width, inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, int]] = {}
    for n in range(config.n_layer):
        shapes[f"h.{n}.attn.c_attn.weight"] = (3 * width, width)
        shapes[f"h.{n}.attn.c_proj.weight"] = (width, width)
        shapes[f"h.{n}.mlp.c_fc.weight"] = (inner, width)
        shapes[f"h.{n}.mlp.c_proj.weight"] = (width, inner)
    return {**shapes, "lm_head.weight": (config.vocab_size, width)}


def _build(config: ModelConfig, source: _Source, precision: Kind, device: torch.device) -> Weights:
    used: dict[str, Linear] = {}

    def norm(name: str) -> Norm:
        return Norm(source.vector(f"{name}.weight").to(device), source.vector(f"{name}.bias").to(device))

    def linear(name: str) -> Linear:
        weight = f"{name}.weight"
        matrix = source.matrix(weight, _precision_of(weight, precision)).to(device)
        bias = None if name == "lm_head" else source.vector(f"{name}.bias").to(device)
        floor = _FLOORS.get(config.activation_function) if name.endswith("mlp.c_proj") else None
        used[weight] = made = make_linear(matrix, bias, floor)
        if not (isinstance(made, FbgemmFp16Linear) and source.is_converted):
            source.drop(weight)
        return made

    def block(n: int) -> Block:
        return Block(
            ln_1=norm(f"h.{n}.ln_1"),
            c_attn=linear(f"h.{n}.attn.c_attn"),
            c_proj=linear(f"h.{n}.attn.c_proj"),
            ln_2=norm(f"h.{n}.ln_2"),
            mlp_fc=linear(f"h.{n}.mlp.c_fc"),
            mlp_proj=linear(f"h.{n}.mlp.c_proj"),
        )

    def unpacked(name: str, made: FbgemmFp16Linear) -> tuple[FbgemmFp16Linear, Callable[[], None]]:
        return made, lambda: source.drop(name)

    blocks = tuple(block(n) for n in range(config.n_layer))
    head = linear("lm_head")
    weights = Weights(
        wte=source.table("wte.weight").to(device),
        wpe=source.vector("wpe.weight").to(device),
        blocks=blocks,
        ln_f=norm("ln_f"),
        head=head,
        precision=precision,
        kernels=tuple(dict.fromkeys(made.kernel for made in used.values())),
        # The last is packed first: the head takes the longest product of all.
        _unpacked=[unpacked(n, made) for n, made in used.items() if isinstance(made, FbgemmFp16Linear)],
    )
    if config.parameters < PACKED_AT_LOAD:
        weights.pack()
    return weights


def read_pickles(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` checkpoint; only plain tensors are ever unpickled."""
    tensors: dict[str, Tensor] = {}
    for path in checkpoint.pickles:
        tensors.update(_state_dict(path))
    check_shapes(checkpoint.config, {n: tuple(t.shape) for n, t in tensors.items()}, checkpoint.directory)
    return tensors


def _state_dict(path: Path) -> Iterator[tuple[str, Tensor]]:
    state = _unpickle(path)
    if not isinstance(state, dict):
        raise ModelFileError(f"{path}: not a table of tensors")
    for key, tensor in state.items():
        name = canonical_name(str(key))
        if name is None:
            continue
        if not isinstance(tensor, Tensor) or not _plain(tensor):
            raise ModelFileError(f"{path}: {key} is not a tensor of type fp32, fp16 or bf16")
        yield name, tensor.detach()


def _unpickle(path: Path) -> Any:
    """The content of a pickle, by torch's unpickler that runs no code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own message advises to allow code.
        raise ModelFileError(f"{path}: damaged, or it holds more than plain tensors") from None
    except Exception as error:
        # A crafted file can make the unpickler raise anything.
        reason = str(error).strip() or type(error).__name__
        raise ModelFileError(f"{path}: damaged: {reason.splitlines()[0][:200]}") from None


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype in FLOAT_TYPES and tensor.layout == torch.strided and tensor.device.type == "cpu"


def check_memory(checkpoint: Checkpoint, precision: Kind) -> None:
    """Raise `Gpt2cliError` when the weights will not fit the memory that is free now."""
    free = available_memory()
    needed = checkpoint.config.parameters * BYTES_PER_WEIGHT[precision]
    if free is not None and needed > free:
        raise Gpt2cliError(
            f"the model needs about {needed / 1e9:.1f} GB of memory in {precision}, "
            f"and {free / 1e9:.1f} GB are free",
            hint="close other programs, or try --precision int8",
        )


def check_cache_memory(config: ModelConfig, rows: int, tokens: int) -> None:
    """Raise `Gpt2cliError` when ``rows`` texts of ``tokens`` tokens will not fit the free memory."""
    free = available_memory()
    kept = min(tokens, config.n_positions) * config.n_layer * 2 * config.n_embd
    needed = 4 * rows * (kept + 4 * config.vocab_size)
    if free is not None and rows > 1 and needed > free:
        raise Gpt2cliError(
            f"{rows} texts at once need about {needed / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free",
            hint="draw fewer at a time: text i of a run with seed S is the one of seed S+i alone",
        )


def available_memory() -> int | None:
    """Bytes that a new process may use without swapping; None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
