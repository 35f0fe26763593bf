"""Adapters in peft's format, written without peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import write_json

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


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
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, mean: float = 0.0) -> Any:
        return (mean + std * torch.randn(shape, generator=generator)).to(getattr(torch, dtype))

    content: dict[str, Any] = {}
    for module, (inputs, outputs) in module_shapes(base).items():
        if not any(module.endswith(target) for target in targets):
            continue
        own = next((r for end, r in (ranks or {}).items() if module.endswith(end)), rank)
        content[f"base_model.model.{module}.lora_A.weight"] = random(own, inputs)
        content[f"base_model.model.{module}.lora_B.weight"] = random(outputs, own)
        if config.get("use_dora"):
            content[f"base_model.model.{module}.lora_magnitude_vector"] = random(outputs, mean=2.0)
    content |= {f"base_model.model.{name}": tensor for name, tensor in (tensors or {}).items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(content, directory / WEIGHTS, {"format": "pt"})
    whole = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "fan_in_fan_out": True,
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
