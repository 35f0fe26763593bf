"""Checkpoints that are pickles: only plain tensors are unpickled, by torch's reader that runs no code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint, ModelConfig, canonical_name, check_shapes, is_buffer
from gpt2cli.errors import ModelFileError

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_pickles(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` checkpoint, under the names that `Checkpoint.tensors` has.

    Raises `ModelFileError`. Those of another architecture than GPT-2 are not held against its config.
    """
    tensors: dict[str, Tensor] = {}
    config = checkpoint.config
    name_of = canonical_name if isinstance(config, ModelConfig) else _name_or_buffer
    for path in checkpoint.pickles:
        tensors.update(_state_dict(path, name_of))
    if isinstance(config, ModelConfig):
        check_shapes(config, {n: tuple(t.shape) for n, t in tensors.items()}, checkpoint.directory)
    return tensors


def _name_or_buffer(key: str) -> str | None:
    return None if is_buffer(key) else key


def _state_dict(path: Path, name_of: Callable[[str], str | None]) -> Iterator[tuple[str, Tensor]]:
    state = _unpickle(path)
    if not isinstance(state, dict):
        raise ModelFileError(f"{path}: not a table of tensors")
    for key, tensor in state.items():
        name = name_of(str(key))
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
