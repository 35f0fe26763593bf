"""Adapters in peft's format, written without peft."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import write_json

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def module_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """[in, out] of every matrix of the layers, by the module's name in transformers."""
    config = json.loads((base / "config.json").read_bytes())
    d, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    shapes = dict(zip(MODULES, ((d, 3 * d), (d, d), (d, inner), (inner, d)), strict=True))
    return {
        f"transformer.h.{layer}.{module}": shape
        for layer in range(config["n_layer"])
        for module, shape in shapes.items()
    }


def make_adapter(
    directory: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8,
    std: float = 0.1,
    dtype: str = "float32",
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc"),
    tensors: dict[str, Any] | None = None,
    ranks: dict[str, int] | None = None,
    **config: Any,
) -> Path:
    """Write a random adapter for the model in ``base``; the directory.

    ``targets`` are ends of modules' names, ``tensors`` further ones under the base's keys, ``ranks`` other
    ranks by a module's end, and ``config`` overrides adapter_config.json, key by key.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, mean: float = 0.0) -> Any:
        return (mean + std * torch.randn(shape, generator=generator)).to(getattr(torch, dtype))

    content: dict[str, Any] = {}
    for module, (inputs, outputs) in module_shapes(base).items():
        if not any(module.endswith(target) for target in targets):
            continue
        own = next((r for end, r in (ranks or {}).items() if module.endswith(end)), rank)
        content[f"{module}.lora_A.weight"] = random(own, inputs)
        content[f"{module}.lora_B.weight"] = random(outputs, own)
        if config.get("use_dora"):
            content[f"{module}.lora_magnitude_vector"] = random(outputs, mean=2.0)
    content |= tensors or {}
    config = {"base_model_name_or_path": base.name, "fan_in_fan_out": True, **config}
    return write_adapter(directory, content, rank=rank, alpha=alpha, targets=targets, **config)


def write_adapter(
    directory: Path,
    content: dict[str, Any],
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    **config: Any,
) -> Path:
    """Write an adapter of the tensors in ``content``, by the base's names of modules; the directory.

    ``config`` overrides adapter_config.json, key by key.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    named = {f"{PREFIX}{name}": tensor for name, tensor in content.items()}
    save_file(named, directory / WEIGHTS, {"format": "pt"})
    whole = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "fan_in_fan_out": False,
        "bias": "none",
        "target_modules": list(targets),
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "inference_mode": True,
    }
    write_json(directory / CONFIG, {**whole, **config})
    return directory


def adapter_tensors(directory: Path) -> dict[str, Any]:
    """The tensors of an adapter as torch has them."""
    from safetensors.torch import load_file

    return load_file(directory / WEIGHTS)


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of adapter_config.json."""
    path = directory / CONFIG
    write_json(path, {**json.loads(path.read_bytes()), **changes})
