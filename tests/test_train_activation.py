"""GELU in one kernel gives what transformers' own does."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from gpt2cli.train.activation import fuse_gelu


def model_of(activation: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60,
            n_positions=32,
            n_embd=24,
            n_layer=3,
            n_head=3,
            activation_function=activation,
            initializer_range=0.3,
        )
    ).eval()


def test_logits_and_gradients() -> None:
    """In fp32, within 1e-5 of the largest."""
    theirs = model_of("gelu_new")
    ours = copy.deepcopy(theirs)
    fuse_gelu(ours)
    assert not any(isinstance(module, NewGELUActivation) for module in ours.modules())
    ids = torch.randint(0, 60, (2, 32), generator=torch.Generator().manual_seed(1))
    for model in (ours, theirs):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    with torch.no_grad():
        logits, expected = (model(input_ids=ids, use_cache=False).logits for model in (ours, theirs))
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    for (name, our), (_, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert our.grad is not None
        assert their.grad is not None
        assert (our.grad - their.grad).abs().max() <= 1e-5 * max(1.0, float(their.grad.abs().max())), name


def test_other_activations_stay() -> None:
    for activation in ("gelu", "relu", "silu"):
        model = model_of(activation)
        before: list[nn.Module] = list(model.modules())
        fuse_gelu(model)
        assert list(model.modules()) == before


def test_what_is_saved_names_it_as_before() -> None:
    model = model_of("gelu_new")
    fuse_gelu(model)
    assert model.config.activation_function == "gelu_new"
    assert list(model.state_dict()) == list(model_of("gelu_new").state_dict())
