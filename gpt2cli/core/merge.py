"""A model with its adapter as a model of its own: what `Tensors` reads, in one file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from gpt2cli.checkpoint import MAX_JSON_BYTES, Checkpoint, ModelConfig, expected_shapes
from gpt2cli.core.arrays import as_float32
from gpt2cli.core.tensors import Tensors, open_tensors
from gpt2cli.errors import Gpt2cliError
from gpt2cli.untrusted import read_json


def write_merged(checkpoint: Checkpoint, directory: Path) -> None:
    """Write config.json and model.safetensors, in fp32, into ``directory``.

    An engine computes the same bits with it as with ``checkpoint`` and its adapter. Raises `ModelFileError`,
    `Gpt2cliError`, `OSError`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = open_tensors(checkpoint)
    keys, tied = _keys(checkpoint, tensors)
    whole = {key: np.ascontiguousarray(as_float32(*tensors.read_finite(name))) for name, key in keys.items()}
    raw = read_json(checkpoint.directory / "config.json", MAX_JSON_BYTES)
    raw.pop("torch_dtype", None)
    config = {**raw, "dtype": "float32", **tied}
    path = directory / "model.safetensors"
    try:
        save_file(whole, path, {"format": "pt"})
    except SafetensorError as error:
        raise Gpt2cliError(f"{path}: cannot be written: {error}") from None
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for name in ("model.safetensors", "config.json"):
        with (directory / name).open("rb+") as file:
            os.fsync(file.fileno())


def _keys(checkpoint: Checkpoint, tensors: Tensors) -> tuple[dict[str, str], dict[str, bool]]:
    """What each tensor is called in the file, by its name here; and what the config says of the head."""
    config = checkpoint.config
    if not isinstance(config, ModelConfig):
        return {name: name for name in checkpoint.tensors}, {}
    keys = {name: f"transformer.{name}" for name in expected_shapes(config) if name != "lm_head.weight"}
    tied = tensors.head_name() == "wte.weight"
    if not tied:
        keys["lm_head.weight"] = "lm_head.weight"
    return keys, {"tie_word_embeddings": tied}
