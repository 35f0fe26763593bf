"""The step in fixed shapes computes what the forward pass does; recorded, on a machine with a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import make_model

from gpt2cli.core.cache import KVCache
from gpt2cli.core.cuda_graph import graph_step, static_step
from gpt2cli.core.engine import Engine
from gpt2cli.core.model import GPT2
from gpt2cli.options import GenerateOptions, LoadOptions

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
PROMPTS = [[1, 2, 3, 4, 5], [9], [7] * 11]


def _model(directory: Path, device: str) -> GPT2:
    path = make_model(directory, tokenizer=None, std=0.2)
    return Engine.load(path, LoadOptions(device=device, precision="fp32")).model  # type: ignore[arg-type]


def _filled(model: GPT2) -> KVCache:
    caches = [model.new_cache() for _ in PROMPTS]
    for cache, prompt in zip(caches, PROMPTS, strict=True):
        model.forward(torch.tensor([prompt], device=model.device), cache)
    return KVCache.join(caches, 30)


def test_fixed_shapes(tmp_path: Path) -> None:
    """Rows at different places, over a buffer longer than any of them."""
    model = _model(tmp_path, "cpu")
    cache, static = _filled(model), _filled(model)
    for token in (3, 8, 250):
        ids = torch.tensor([[token], [token + 1], [token - 1]])
        expected = model.forward(ids, cache)
        found = static_step(model, static.buffer, ids, torch.tensor(static.lengths))
        static.lengths = [length + 1 for length in static.lengths]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(static.buffer, cache.buffer, rtol=0, atol=1e-5)


@needs_cuda
def test_recorded(tmp_path: Path) -> None:
    model = _model(tmp_path, "cuda")
    cache, other = _filled(model), _filled(model)
    for token in (3, 8, 250):
        ids = torch.tensor([[token], [token + 1], [token - 1]], device="cuda")
        torch.testing.assert_close(
            graph_step(model, ids, other), model.forward(ids, cache), rtol=0, atol=1e-4
        )
    assert other.lengths == cache.lengths


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_same_text_as_on_a_cpu(tmp_path: Path, precision: str) -> None:
    """In fp32; the faster precisions run, and end."""
    path = make_model(tmp_path, std=0.2)
    load = LoadOptions(device="cuda", precision=precision)  # type: ignore[arg-type]
    options = GenerateOptions(seed=1, max_new_tokens=40, num_return_sequences=3)
    found = Engine.load(path, load).generate("Once", options)
    assert all(choice.finish_reason is not None for choice in found.choices)
    if precision == "fp32":
        expected = Engine.load(path, LoadOptions(device="cpu", precision="fp32")).generate("Once", options)
        assert [c.token_ids for c in found.choices] == [c.token_ids for c in expected.choices]
