"""Attention in pieces is attention at once, and what it hands out are its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import load_fp32, make_model

from gpt2cli.core.attention import attend, attention_weights
from gpt2cli.core.cache import QUERIES_AT_ONCE, KVCache
from gpt2cli.core.model import GPT2, gelu_new

HEADS, WIDTH = 3, 8
TOLERANCE = 2e-6


def _cache(rows: int, present: int, tokens: int) -> KVCache:
    buffer = torch.randn(1, 2, rows, HEADS, present + tokens + 5, WIDTH)
    return KVCache(buffer, [present] * rows, present + tokens + 5)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("present", [0, 1, 100, 512])
@pytest.mark.parametrize("tokens", [192, 193, 384, 400, 512, 767, 768])
def test_pieces_are_the_whole(tokens: int, present: int, rows: int) -> None:
    torch.manual_seed(tokens + present)
    cache = _cache(rows, present, tokens)
    plan = cache.plan(tokens)
    assert bool(plan.pieces) == (QUERIES_AT_ONCE < tokens < 768)
    assert sum(len(mask) for mask in plan.pieces) in (0, tokens)
    q = torch.randn(rows, HEADS, tokens, WIDTH)
    keys, values = plan.views
    seen = torch.ones(tokens, present + tokens, dtype=torch.bool).tril(present)
    wanted = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=0.3)
    attended = attend(q, keys, values, plan, 0.3)
    assert attended.shape == (rows, tokens, HEADS * WIDTH)
    assert torch.allclose(attended, wanted.transpose(1, 2).reshape(attended.shape), atol=TOLERANCE)
    weights = attention_weights(q, keys, plan, 0.3)
    assert torch.allclose(weights @ values, wanted, atol=TOLERANCE)


def test_long_prompts_are_those_of_transformers(tmp_path: Path) -> None:
    """More than one chunk, and both forms of GELU."""
    transformers = pytest.importorskip("transformers")
    directory = make_model(tmp_path, n_positions=1024, n_embd=64, std=0.2)
    model: GPT2 = load_fp32(directory).model
    theirs = transformers.GPT2LMHeadModel.from_pretrained(directory)
    ids = torch.randint(0, model.config.vocab_size, (2, 900))
    with torch.no_grad():
        wanted = theirs(ids).logits
    at_once = model.forward(ids, model.new_cache(2, 900), all_positions=True)
    assert torch.allclose(at_once, wanted, atol=1e-4)
    cache = model.new_cache(2, 900)
    parts = [model.forward(part, cache, all_positions=True) for part in ids.split([300, 500, 100], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), wanted, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 31, 32, 100])
def test_gelu_of_long_prompts_is_that_of_a_step(tokens: int) -> None:
    x = torch.randn(2, tokens, 67) * 10
    x[0, 0, :6] = torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-30, -100.0])
    kept = x.clone()
    assert torch.allclose(gelu_new(x), F.gelu(x, approximate="tanh"), atol=TOLERANCE, rtol=1e-6)
    assert torch.equal(x, kept)


def test_defaults_of_the_program_around_it_change_nothing() -> None:
    """Of torch, which is the user's: masks are those of the cache's device and type."""
    cache, q = _cache(1, 0, 300), torch.randn(1, HEADS, 300, WIDTH)
    wanted = attend(q, *cache.plan(300).views, cache.plan(300), 0.3)
    with torch.device("meta"):
        plan = cache.plan(300)
    assert {mask.device.type for mask in plan.pieces} == {"cpu"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        plan = cache.plan(300)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(attend(q, *plan.views, plan, 0.3), wanted)
