"""A checkpoint's tensors, ready for the model: the layout on disk is resolved here and nowhere else."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint, ModelConfig, canonical_name, check_shapes
from gpt2cli.core.linear import FP16_MAX, Linear, make_linear
from gpt2cli.errors import Gpt2cliError, ModelFileError

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
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


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. ``wte`` [vocab, n_embd] stays in the type it has on disk; ``wpe`` is fp32."""

    wte: Tensor
    wpe: Tensor
    blocks: tuple[Block, ...]
    ln_f: Norm
    head: Linear
    precision: str
    kernels: tuple[str, ...]


def load_weights(checkpoint: Checkpoint, precision: str, device: torch.device) -> Weights:
    """Read and prepare every tensor. ``precision`` is one of fp32, fp16, bf16, int8, int4.

    Raises `ModelFileError` for a NaN or an infinity, naming the tensor, and `Gpt2cliError` when the
    model does not fit the memory there is.
    """
    with ExitStack() as files:
        read = _reader(checkpoint, files)
        return _build(checkpoint, read, precision, device)


def _build(
    checkpoint: Checkpoint, read: Callable[[str], Tensor | None], precision: str, device: torch.device
) -> Weights:
    def tensor(name: str) -> Tensor:
        found = read(name)
        assert found is not None, name
        return _finite(found, name, checkpoint.directory).to(device)

    def norm(name: str) -> Norm:
        return Norm(tensor(f"{name}.weight").float(), tensor(f"{name}.bias").float())

    def linear(name: str) -> Linear:
        # Conv1D keeps [in, out]; the view costs nothing.
        return _linear(tensor(f"{name}.weight").t(), tensor(f"{name}.bias").float(), precision)

    def block(n: int) -> Block:
        return Block(
            ln_1=norm(f"h.{n}.ln_1"),
            c_attn=linear(f"h.{n}.attn.c_attn"),
            c_proj=linear(f"h.{n}.attn.c_proj"),
            ln_2=norm(f"h.{n}.ln_2"),
            mlp_fc=linear(f"h.{n}.mlp.c_fc"),
            mlp_proj=linear(f"h.{n}.mlp.c_proj"),
        )

    wte = tensor("wte.weight")
    own_head = read("lm_head.weight")
    if own_head is not None:
        own_head = _finite(own_head, "lm_head.weight", checkpoint.directory).to(device)
    # As in transformers: a head that differs from the embeddings is used, whatever the config says.
    tied = own_head is None or (checkpoint.config.tie_word_embeddings and torch.equal(own_head, wte))
    head_precision = "int8" if precision == "int4" else precision
    blocks = tuple(block(n) for n in range(checkpoint.config.n_layer))
    head = _linear(wte if tied or own_head is None else own_head, None, head_precision)
    used = [b_linear for b in blocks for b_linear in (b.c_attn, b.c_proj, b.mlp_fc, b.mlp_proj)]
    return Weights(
        wte=wte,
        wpe=tensor("wpe.weight").float(),
        blocks=blocks,
        ln_f=norm("ln_f"),
        head=head,
        precision=precision,
        kernels=tuple(dict.fromkeys(kernel.kernel for kernel in (*used, head))),
    )


def _linear(weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
    """The kernel for one matrix; fp16 cannot hold what is over 65,504, so such a matrix stays in fp32."""
    if precision == "fp16" and weight.dtype != torch.float16 and float(weight.abs().max()) > FP16_MAX:
        precision = "fp32"
    return make_linear(weight, bias, precision)


def _finite(tensor: Tensor, name: str, where: Path) -> Tensor:
    low, high = torch.aminmax(tensor)
    # A NaN anywhere makes both NaN.
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ModelFileError(f"{where}: {name} contains NaN or infinity")
    return tensor


def _reader(checkpoint: Checkpoint, files: ExitStack) -> Callable[[str], Tensor | None]:
    """A function from a canonical name to its tensor, None where the checkpoint has none."""
    if checkpoint.pickles:
        return read_pickles(checkpoint).get
    from safetensors import SafetensorError, safe_open

    opened: dict[Path, Any] = {}

    def read(name: str) -> Tensor | None:
        info = checkpoint.tensors.get(name)
        if info is None:
            return None
        try:
            if info.file not in opened:
                opened[info.file] = files.enter_context(safe_open(str(info.file), framework="pt"))
            tensor: Tensor = opened[info.file].get_tensor(info.key)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{info.file}: {error}") from None
        return tensor

    return read


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


def check_memory(checkpoint: Checkpoint, precision: str) -> None:
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
