"""A checkpoint of pickles as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from gpt2cli.checkpoint import WEIGHT_FILES, Checkpoint
from gpt2cli.core.weights import check_memory, read_pickles
from gpt2cli.errors import ModelFileError


def convert_pickles(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write the tensors of ``checkpoint.pickles`` to ``model.safetensors`` in ``directory``; its path.

    Only plain tensors are ever unpickled. A tied head is left out, as transformers does. Raises
    `ModelFileError` when a file is damaged, holds more than tensors, or NaN or infinity, `OSError` when
    the new one cannot be written, and `Gpt2cliError` when the model does not fit the memory.
    """
    check_memory(checkpoint, "fp32")
    tensors = read_pickles(checkpoint)
    head = tensors.get("lm_head.weight")
    if (
        head is not None
        and checkpoint.config.tie_word_embeddings
        and torch.equal(head, tensors["wte.weight"])
    ):
        del tensors["lm_head.weight"]
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{checkpoint.directory}: {name} contains NaN or infinity")
    # A pickle may hold views into one storage, which the new format does not know.
    whole = {
        name if name == "lm_head.weight" else f"transformer.{name}": tensor.clone(
            memory_format=torch.contiguous_format
        )
        for name, tensor in tensors.items()
    }
    path = directory / WEIGHT_FILES[0]
    save_file(whole, path, {"format": "pt"})
    return path
