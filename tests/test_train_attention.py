"""Our attention gives what transformers' own does."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.train import attention

attention.register()

# transformers renamed it: 5.24 has both, with a warning at the old one; 5.5 has the old one only.
NEW_NAME = "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters
CACHE = "cache" if NEW_NAME else "past_key_values"


def model_of(implementation: str, **config: Any) -> GPT2LMHeadModel:
    """The same random weights, whatever computes the attention."""
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**{**shape, **dropout, "initializer_range": 0.3, **config}))
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    return model


def ids_of(rows: int = 2, length: int = 17) -> Tensor:
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(1))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
]


@pytest.mark.parametrize("reference", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, 2, 17, 32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients(reference: str, length: int, variant: dict[str, Any]) -> None:
    """In fp32, within 1e-5 of the largest."""
    ids = ids_of(length=length)
    results = []
    for implementation in (attention.NAME, reference):
        model = model_of(implementation, **variant).train()
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        results.append((logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for name, gradient in our_gradients.items():
        expected = their_gradients[name]
        assert gradient is not None
        assert expected is not None
        assert (gradient - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), name


def test_no_token_sees_a_later_one() -> None:
    model = model_of(attention.NAME).eval()
    ids = ids_of()
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 60
    with torch.no_grad():
        first, second = (model(input_ids=x, use_cache=False).logits for x in (ids, changed))
    assert torch.equal(first[:, :9], second[:, :9])
    assert not torch.equal(first[:, 9], second[:, 9])


@pytest.mark.parametrize("reference", ["eager", "sdpa"])
@pytest.mark.parametrize("first", [1, 5, 16])
def test_with_a_cache(reference: str, first: int) -> None:
    """Queries that begin after the keys: the mask is that of the last rows."""
    ids = ids_of()
    with torch.no_grad():
        expected = model_of(reference).eval()(input_ids=ids, use_cache=False).logits
        model = model_of(attention.NAME).eval()
        begun = model(input_ids=ids[:, :first], use_cache=True)
        rest = model(input_ids=ids[:, first:], use_cache=True, **{CACHE: begun[CACHE]})
    logits = torch.cat([begun.logits, rest.logits], 1)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_generated_text() -> None:
    """As the samples during a training are made: token by token, with a cache."""
    start = ids_of(1, 3)
    options = {"max_new_tokens": 25, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        ours, theirs = (
            model_of(name).eval().generate(start, attention_mask=torch.ones_like(start), **options)
            for name in (attention.NAME, "eager")
        )
    assert ours.shape[1] == 28
    assert torch.equal(ours, theirs)


def test_training_after_generating() -> None:
    """A mask kept from inference mode must not stop the next backward pass."""
    model, ids = model_of(attention.NAME), ids_of(1, 11)
    attention._mask.cache_clear()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    model(input_ids=ids, use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_while_training_only() -> None:
    model, ids = model_of(attention.NAME, attn_pdrop=0.5), ids_of()
    plain = copy.deepcopy(model).eval()(input_ids=ids, use_cache=False).logits
    assert torch.equal(model.eval()(input_ids=ids, use_cache=False).logits, plain)
    torch.manual_seed(0)
    dropped = [model.train()(input_ids=ids, use_cache=False).logits for _ in range(2)]
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], plain)


def test_bf16_autocast() -> None:
    """Within what bf16 can hold of the fp32 result, and no NaN from the mask."""
    model, ids = model_of(attention.NAME, initializer_range=0.05), ids_of()
    exact = model(input_ids=ids, use_cache=False).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    logits.float().sum().backward()
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
