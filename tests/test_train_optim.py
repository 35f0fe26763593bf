"""Optimizers and schedules: by their definition, and the same after a checkpoint."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.train.optim import MuonWithAdamW, learning_rate_factor, make_optimizer
from gpt2cli.train.options import TrainOptions


def model_of(seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**{**shape, **dropout, **config}))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One training step on the ids of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (2, 12), generator=generator)
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def factors(steps: int, **options: Any) -> list[float]:
    settings = TrainOptions(**options)
    return [learning_rate_factor(n, steps, settings) for n in range(steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warmup_rises_to_the_highest(schedule: Any, warmup: int) -> None:
    found = factors(100, schedule=schedule, warmup=warmup, decay=0.2)
    assert found[:warmup] == pytest.approx([(n + 1) / warmup for n in range(warmup)])
    assert found[warmup] == 1.0
    assert max(found) == 1.0


def test_cosine() -> None:
    found = factors(110, schedule="cosine", warmup=10)
    for n in range(10, 111):
        assert found[n] == pytest.approx((1 + math.cos(math.pi * (n - 10) / 100)) / 2)
    assert found[-1] == pytest.approx(0)


def test_linear() -> None:
    found = factors(110, schedule="linear", warmup=10)
    assert found[10:] == pytest.approx([1 - n / 100 for n in range(101)])


def test_constant_falls_at_the_end() -> None:
    """Warmup, a stable part, and a linear decay to 0 over the last share of the steps."""
    found = factors(100, schedule="constant", warmup=10, decay=0.4)
    assert found[10:61] == [1.0] * 51
    assert found[60:] == pytest.approx([n / 40 for n in range(40, -1, -1)])
    assert factors(100, schedule="constant", warmup=0, decay=0.0) == [1.0] * 101


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_few_steps(schedule: Any, steps: int) -> None:
    """A warmup longer than the training would never reach the learning rate that was asked for."""
    found = factors(steps, schedule=schedule, warmup=100, decay=0.4)
    assert max(found) == 1.0
    assert all(value > 0 for value in found[:-1])
    assert all(0 <= value <= 1 for value in found)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_in_one_group(optimizer: Any, tied: bool) -> None:
    """A weight in none is never trained, one in two is trained twice."""
    model = model_of(tie_word_embeddings=tied)
    made = make_optimizer(model, TrainOptions(optimizer=optimizer))
    found = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(found) == sorted({id(p) for p in model.parameters()})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_is_for_matrices(optimizer: Any) -> None:
    """Norms and biases have no reason to be small."""
    model = model_of(tie_word_embeddings=False)
    made = make_optimizer(model, TrainOptions(optimizer=optimizer, weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in made.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        embedding = any(part in name for part in ("wte", "wpe", "lm_head"))
        decayed = parameter.ndim == 2 and not (optimizer == "muon" and embedding)
        assert decay[name] == (0.3 if decayed else 0.0), name


def test_muon_has_the_matrices_of_the_layers() -> None:
    model = model_of(tie_word_embeddings=False)
    options = TrainOptions(optimizer="muon", learning_rate=1e-3, muon_scale=2.0)
    muon, *rest = make_optimizer(model, options).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)].split(".", 3)[-1] for p in muon["params"]}
    assert kinds == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert len(muon["params"]) == 8
    assert muon["lr"] == 2e-3
    assert [group["lr"] for group in rest] == [1e-3]


def test_muon_step_is_near_orthogonal() -> None:
    """Its update has singular values near 1, at the size of AdamW's updates (0.2 sqrt(max(A, B)))."""
    weight = nn.Parameter(torch.zeros(8, 32))
    other = nn.Parameter(torch.zeros(3))
    module = nn.ParameterDict({"weight": weight, "bias": other})
    made = make_optimizer(module, TrainOptions(optimizer="muon", learning_rate=1e-3, weight_decay=0))
    weight.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    other.grad = torch.ones(3)
    made.step()
    values = torch.linalg.svdvals(weight.detach()) / (1e-3 * 0.2 * math.sqrt(32))
    assert values.min() > 0.5
    assert values.max() < 1.5
    assert other.tolist() == pytest.approx([-1e-3] * 3, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_steps_are_the_unbroken_ones(optimizer: Any) -> None:
    """Momenta that were not restored make a bump in the loss after every resume."""
    options = TrainOptions(optimizer=optimizer, learning_rate=1e-2)

    def schedule(made: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(made, lambda n: learning_rate_factor(n, 10, options))

    model = model_of()
    made = make_optimizer(model, options)
    scheduler = schedule(made)
    for n in range(3):
        step(model, made, n)
        scheduler.step()
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), scheduler.state_dict()))
    step(model, made, 3)
    scheduler.step()
    step(model, made, 4)

    again = model_of(seed=1)
    again.load_state_dict(saved[0])
    resumed = make_optimizer(again, options)
    resumed_scheduler = schedule(resumed)
    resumed.load_state_dict(saved[1])
    resumed_scheduler.load_state_dict(saved[2])
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in saved_groups(saved[1])]
    step(again, resumed, 3)
    resumed_scheduler.step()
    step(again, resumed, 4)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(again)[name]), name


def saved_groups(state: dict[str, Any]) -> list[dict[str, Any]]:
    states = [state["muon"], state["adamw"]] if "muon" in state else [state]
    return [group for one in states for group in one["param_groups"]]


@pytest.mark.parametrize("loaded", [False, True])
def test_schedule_reaches_every_group(loaded: bool) -> None:
    """Muon and AdamW have groups of their own, and new ones after a state was loaded."""
    options = TrainOptions(optimizer="muon", learning_rate=1e-2, muon_scale=3.0, schedule="linear", warmup=0)
    model = model_of()
    made = make_optimizer(model, options)
    assert isinstance(made, MuonWithAdamW)
    scheduler = LambdaLR(made, lambda n: learning_rate_factor(n, 4, options))
    if loaded:
        made.load_state_dict(copy.deepcopy(made.state_dict()))
    for n in range(4):
        assert [group["lr"] for group in made.param_groups] == pytest.approx(
            [3e-2 * (1 - n / 4), 1e-2 * (1 - n / 4)]
        )
        step(model, made, n)
        scheduler.step()
    before = weights(model)
    step(model, made, 9)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_gradients_of_every_group_are_cleared() -> None:
    model = model_of()
    made = make_optimizer(model, TrainOptions(optimizer="muon"))
    step(model, made, 0)
    made.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_weights_stay(optimizer: Any) -> None:
    """LoRA trains matrices only: no group may be wanting for a bias."""
    model = model_of()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("c_attn.weight"))
    before = weights(model)
    made = make_optimizer(model, TrainOptions(optimizer=optimizer))
    step(model, made, 0)
    made.load_state_dict(copy.deepcopy(made.state_dict()))
    step(model, made, 1)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("c_attn.weight")}


def test_muon_is_torchs_up_to_rounding() -> None:
    """torch's rounds the iteration to bf16; momentum, learning rate and weight decay are the same."""
    from torch.optim import Muon

    model, reference = model_of(), model_of()
    options = TrainOptions(optimizer="muon", learning_rate=1e-2, weight_decay=0.3)
    made = make_optimizer(model, options)
    layers = [
        p for name, p in reference.named_parameters() if p.ndim == 2 and name.startswith("transformer.h.")
    ]
    theirs = Muon(layers, lr=1e-2, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        made.step()
        theirs.step()
    for name, parameter in model.named_parameters():
        if any(parameter.shape == p.shape for p in layers) and name.startswith("transformer.h."):
            torch.testing.assert_close(parameter, dict(reference.named_parameters())[name], rtol=0, atol=5e-3)
