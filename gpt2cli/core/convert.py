"""A pickle checkpoint becomes safetensors. Only plain tensors are ever unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gpt2cli.checkpoint import ModelConfig, open_checkpoint
from gpt2cli.core.pickles import read_pickles
from gpt2cli.errors import Gpt2cliError

TARGET = "model.safetensors"


def convert_pickles(directory: Path) -> None:
    """Write model.safetensors from the ``.bin`` files in ``directory``, which stay.

    A head that only repeats the embeddings is left out. Raises `ModelFileError` for a pickle that is
    damaged or holds anything but the tensors of its config, `Gpt2cliError`, `OSError`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    checkpoint = open_checkpoint(directory, allow_pickle=True)
    tensors = read_pickles(checkpoint)
    head = tensors.get("lm_head.weight")
    config = checkpoint.config
    tied = isinstance(config, ModelConfig) and config.tie_word_embeddings
    if head is not None and tied and torch.equal(head, tensors["wte.weight"]):
        del tensors["lm_head.weight"]
    # Views of one storage cannot be written, and a view may keep more alive than it shows.
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    temporary = directory / f".{TARGET}.tmp"
    try:
        save_file(whole, temporary, {"format": "pt"})
    except SafetensorError as error:
        raise Gpt2cliError(f"{directory / TARGET}: cannot be written: {error}") from None
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, directory / TARGET)
