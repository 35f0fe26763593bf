"""LoRA adapters of other architectures: the logits of the same weights merged by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import write_adapter
from family_models import write_family
from safetensors.torch import load_file, save_file

from gpt2cli.core.backend import Batch, Floats
from gpt2cli.core.engine import Engine
from gpt2cli.errors import ModelFileError
from gpt2cli.options import LoadOptions

MODULES = {
    "llama": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    "openai-gpt": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"),
    "bloom": ("transformer.h.0.self_attention.query_key_value", "transformer.h.1.mlp.dense_h_to_4h"),
}
"""By family, modules as transformers and so peft name them."""
IDS = [5, 9, 17, 30, 4, 8]


def logits(directory: Path, adapter: Path | None = None) -> Floats:
    """[T, V]"""
    options = LoadOptions(device="cpu", precision="fp32", threads=1)
    backend = Engine.load(directory, options, adapter=adapter).backend
    try:
        return backend.forward(Batch.of([(backend.new_slot(), 0, IDS)], wanted=range(len(IDS))))
    finally:
        backend.close()


@pytest.mark.parametrize("kind", MODULES)
def test_the_logits_of_the_merged_model(tmp_path: Path, kind: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_family(base, kind, tokenizer=False)
    path = base / "model.safetensors"
    tensors, generator = load_file(path), torch.Generator().manual_seed(1)
    content, transposed = {}, kind == "openai-gpt"
    for module in MODULES[kind]:
        name = next(n for n in (f"{module}.weight", f"{module.partition('.')[2]}.weight") if n in tensors)
        rows, columns = tensors[name].shape
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        a = torch.randn(2, inputs, generator=generator) * 0.3
        b = torch.randn(outputs, 2, generator=generator) * 0.3
        content[f"{module}.lora_A.weight"], content[f"{module}.lora_B.weight"] = a, b
        update = 2.0 * (b @ a)
        tensors[name] = (tensors[name] + (update.T if transposed else update)).contiguous()
    write_adapter(adapter, content, rank=2, alpha=4, targets=MODULES[kind], fan_in_fan_out=transposed)
    before = logits(base)
    changed = logits(base, adapter)
    save_file(tensors, path, {"format": "pt"})
    np.testing.assert_allclose(changed, logits(base), rtol=0, atol=1e-4)
    assert abs(changed - before).max() > 0.01


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    """What the base does not have is one line, naming it."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_family(base, "llama", tokenizer=False)
    module = "transformer.h.0.attn.c_attn"
    content = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(24, 2)}
    write_adapter(adapter, content, rank=2, alpha=4, targets=["c_attn"])
    with pytest.raises(ModelFileError, match=r"c_attn.*the model does not have it"):
        logits(base, adapter)
