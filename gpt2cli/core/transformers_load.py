"""A model of transformers from a checked directory: no code, no network, every tensor accounted for.

transformers' class for the ``model_type`` is built from the config's own fields, on no memory (torch's
``meta`` device), and its tensors are held against the headers of the files by transformers' own rules for
names. Only what matches is read, and none of it by transformers: it is handed the tensors.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.tensors import open_tensors
from gpt2cli.errors import ModelFileError
from gpt2cli.families import FamilyConfig
from gpt2cli.options import shown, shown_names

Kind = Literal["fp32", "fp16", "bf16"]
TYPES: Mapping[Kind, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_META = "meta"
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_causal_model(checkpoint: Checkpoint, precision: Kind, device: torch.device) -> Any:
    """transformers' model of ``checkpoint``, ready to be run.

    Raises `ModelFileError` for an architecture that the installed transformers does not have, a config that
    it refuses, and tensors that are missing, too many, of another shape, or no numbers.
    """
    if checkpoint.pickles:
        raise ModelFileError(
            f"{checkpoint.directory}: its weights are a pickle, which is read for GPT-2 only",
            hint="gpt2cli pull --allow-pickle converts the weights of a model of the Hub",
        )
    with _quiet():
        model_class, config = _class_and_config(checkpoint)
        _check_tensors(checkpoint, model_class, config)
        model = _build(checkpoint, model_class, config, read_state(checkpoint), TYPES[precision])
    return model.to(device).eval()


def read_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of ``checkpoint`` by the names of its files: views on them, in the type that they have
    there, or in fp32 what an adapter changes.

    Raises `ModelFileError` for NaN and infinity, naming the tensor.
    """
    tensors, state = open_tensors(checkpoint), {}
    for name in checkpoint.tensors:
        array, kind = tensors.read_finite(name)
        tensor = torch.from_numpy(array)
        state[name] = tensor.view(torch.bfloat16) if kind == "BF16" else tensor
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Have transformers print nothing, and fetch no kernels, which are code."""
    os.environ["USE_HUB_KERNELS"] = "0"
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(action="ignore"):
        yield


def _class_and_config(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """transformers' class for the model, and its config. Raises `ModelFileError`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    path, kind = checkpoint.directory / "config.json", checkpoint.config.architecture
    assert isinstance(checkpoint.config, FamilyConfig)
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(checkpoint.config.fields))
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    except KeyError:
        raise ModelFileError(
            f"{path}: the installed transformers has no causal language model of type {shown(kind)}",
            hint="a newer transformers may have it",
        ) from None
    except Exception as error:
        raise _refused(checkpoint, error) from None


def _check_tensors(checkpoint: Checkpoint, model_class: Any, config: Any) -> None:
    """Raise `ModelFileError` unless the headers have exactly what the model asks for."""
    table = {
        name: torch.empty(info.shape, dtype=_STORED[info.dtype], device=_META)
        for name, info in checkpoint.tensors.items()
    }
    try:
        _, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=table,
            device_map={"": _META},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise _refused(checkpoint, error) from None
    _check_found(checkpoint, found)


def _build(
    checkpoint: Checkpoint, model_class: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype
) -> Any:
    try:
        model, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise _refused(checkpoint, error) from None
    _check_found(checkpoint, found)
    return model


def _check_found(checkpoint: Checkpoint, found: Mapping[str, Any]) -> None:
    """Raise `ModelFileError` for what transformers says was not right with the tensors."""
    where = checkpoint.directory
    if missing := found["missing_keys"]:
        raise ModelFileError(f"{where}: {shown_names(missing)} missing from the weights")
    if wrong := sorted(found["mismatched_keys"], key=str):
        name, has, asked = wrong[0]
        raise ModelFileError(
            f"{where}: {shown(name)} has shape {list(has)}, the config asks for {list(asked)}"
        )
    if extra := found["unexpected_keys"]:
        kind = checkpoint.config.architecture
        raise ModelFileError(f"{where}: {shown_names(extra)} in the weights, which a {kind} does not have")
    if found["error_msgs"]:
        raise ModelFileError(f"{where}: transformers cannot load it ({first_line(found['error_msgs'][0])})")


def _refused(checkpoint: Checkpoint, error: Exception) -> ModelFileError:
    """The one line of an exception that a config can make transformers raise; it may be any."""
    return ModelFileError(f"{checkpoint.directory}: transformers cannot load it ({first_line(error)})")


def first_line(error: object) -> str:
    """What an exception says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:200] or type(error).__name__
