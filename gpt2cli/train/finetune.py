"""Fine-tuning: all weights, or low-rank adapters that are merged into the weights at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.train.options import LoraOptions

LORA_MODULES = ["c_attn", "c_proj", "c_fc"]
"""All matrices of a layer."""


def load_model(directory: Path, dropout: float | None) -> GPT2LMHeadModel:
    """The model of a checked directory, in fp32. Raises `ModelFileError`, `ModelNotFound`, and `UsageError`
    for another architecture than GPT-2."""
    checkpoint = open_checkpoint(directory)
    # Raises for any other architecture.
    _ = checkpoint.gpt2
    changed: dict[str, Any] = {}
    if dropout is not None:
        changed = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    try:
        model = GPT2LMHeadModel.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, use_safetensors=True, **changed
        )
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise ModelFileError(f"{directory}: transformers cannot load it ({line})") from None
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelFileError(f"{checkpoint.directory}: {name} has a NaN or an infinity")
    return model


def add_lora(model: GPT2LMHeadModel, options: LoraOptions, seed: int) -> Any:
    """``model`` with adapters; only they are trained. Raises `UsageError` for too high a rank."""
    from peft import LoraConfig, get_peft_model

    if options.rank > model.config.n_embd:
        raise UsageError(f"--lora-rank {options.rank} is more than the model's width {model.config.n_embd}")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=LORA_MODULES,
        # Conv1D keeps [in, out].
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merged(model: Any) -> PreTrainedModel:
    """The plain model: adapters, if there are any, added into its weights."""
    plain: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return plain
