"""Fine-tuning: all weights, or low-rank adapters that are merged into the weights at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2cli.checkpoint import canonical_name, open_checkpoint, with_import_hint
from gpt2cli.core.adapters import merged
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gpt2cli.train.options import LoraOptions

LORA_MODULES = ["c_attn", "c_proj", "c_fc"]
"""All matrices of a layer."""


def load_model(directory: Path, dropout: float | None) -> GPT2LMHeadModel:
    """The model of a checked directory, in fp32. Raises `ModelFileError`, `ModelNotFound`, and `UsageError`
    for another architecture than GPT-2."""
    try:
        checkpoint = open_checkpoint(directory)
    except ModelFileError as error:
        raise with_import_hint(error, directory) from None
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


def save_adapter(model: Any, directory: Path, base: str | None) -> None:
    """Write the adapters of ``model`` as peft does, for a model that is called ``base``. Raises `OSError`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    # Without embeddings, which are not trained: whether they were is asked of the Hub otherwise.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, {"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(directory)
    path = directory / ADAPTER_CONFIG
    content = json.loads(path.read_text("utf-8"))
    # A set, in any order.
    content["target_modules"] = sorted(content["target_modules"])
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def merge_adapter(model: Any, base: Path, directory: Path) -> PreTrainedModel:
    """The plain model of the directory ``base`` with the adapter in ``directory`` in its weights.

    ``model`` has trained it; the weights are to the last bit those of ``gpt2cli generate --adapter``.
    """
    plain: PreTrainedModel = model.unload()
    plain.to("cpu")  # type: ignore[arg-type]
    adapter = open_checkpoint(base, adapter=directory).adapter
    assert adapter is not None
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            name = canonical_name(key)
            if name is not None and adapter.touches(name):
                parameter.copy_(torch.from_numpy(merged(adapter, name, parameter.numpy())))
    return plain
