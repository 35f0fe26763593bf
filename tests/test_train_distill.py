"""Distillation: the loss of the paper, and a student made of the teacher's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.core.sampling import Sampler
from gpt2cli.errors import InvalidOption
from gpt2cli.options import SamplingOptions
from gpt2cli.train.acceptance import acceptance
from gpt2cli.train.distill import alternate_layers, distillation_loss, make_student, student_layers
from gpt2cli.train.options import DistillOptions
from gpt2cli.train.tokens import TokenFile


def teacher_of(layers: int = 4, **config: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_positions": 16, "n_embd": 8, "n_layer": layers, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**{**shape, "initializer_range": 0.5, **config}))


def test_layers_of_distilgpt2() -> None:
    assert alternate_layers(12, 6) == [0, 2, 4, 7, 9, 11]


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    for teacher in range(2, 49):
        for student in range(1, teacher):
            layers = alternate_layers(teacher, student)
            assert len(set(layers)) == len(layers) == student
            assert layers == sorted(layers)
            assert layers[0] == 0
            assert student == 1 or layers[-1] == teacher - 1


def test_number_of_layers() -> None:
    assert student_layers(12, DistillOptions()) == 6
    assert student_layers(7, DistillOptions()) == 3
    assert student_layers(12, DistillOptions(layers=11)) == 11
    for teacher, options in ((12, DistillOptions(layers=12)), (1, DistillOptions())):
        with pytest.raises(InvalidOption, match="not fewer"):
            student_layers(teacher, options)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def loss_by_hand(arrays: dict[str, np.ndarray], targets: np.ndarray, options: DistillOptions) -> float:
    """The three losses as section 2 of the paper defines them, in float64."""
    t = options.temperature
    teacher, student = log_softmax(arrays["teacher"] / t), log_softmax(arrays["student"] / t)
    soft = (np.exp(teacher) * (teacher - student)).sum(-1).mean() * t**2
    lm = -log_softmax(arrays["student"])[np.arange(len(targets)), targets].mean()
    ours, theirs = arrays["student_hidden"], arrays["teacher_hidden"]
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosine = (1 - (ours * theirs).sum(-1) / norms).mean()
    return float(options.soft_weight * soft + options.lm_weight * lm + options.cosine_weight * cosine)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("weights", [(5, 2, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 0, 7)])
def test_loss_by_hand(temperature: float, weights: tuple[float, float, float]) -> None:
    random = np.random.default_rng(0)
    arrays = {name: 3 * random.standard_normal((6, 11)) for name in ("student", "teacher")}
    arrays |= {f"{name}_hidden": random.standard_normal((6, 5)) for name in ("student", "teacher")}
    targets = random.integers(0, 11, 6)
    soft, lm, cosine = weights
    options = DistillOptions(temperature=temperature, soft_weight=soft, lm_weight=lm, cosine_weight=cosine)
    names = ("student", "teacher", "student_hidden", "teacher_hidden")
    tensors = [torch.from_numpy(arrays[name]).float() for name in names]
    loss = distillation_loss(*tensors, torch.from_numpy(targets), options)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_by_hand(arrays, targets, options), rel=1e-5)


def test_equal_models_have_no_distance() -> None:
    logits, hidden = torch.randn(4, 9), torch.randn(4, 3)
    options = DistillOptions(lm_weight=0)
    loss = distillation_loss(logits, logits, hidden, hidden, torch.zeros(4, dtype=torch.long), options)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_loss_in_bf16_is_computed_in_fp32() -> None:
    """A softmax over a vocabulary in bf16 loses the small probabilities."""
    logits, theirs, hidden = torch.randn(4, 500), torch.randn(4, 500), torch.randn(4, 3)
    tensors = [tensor.bfloat16() for tensor in (logits, theirs, hidden, hidden)]
    targets = torch.zeros(4, dtype=torch.long)
    loss = distillation_loss(*tensors, targets, DistillOptions())
    exact = distillation_loss(*(tensor.float() for tensor in tensors), targets, DistillOptions())
    assert loss.dtype == torch.float32
    assert loss.item() == exact.item()


@pytest.mark.parametrize("tied", [True, False])
def test_student_has_the_teachers_weights(tied: bool) -> None:
    teacher = teacher_of(5, tie_word_embeddings=tied, activation_function="relu")
    student = make_student(teacher, DistillOptions(layers=3), seed=1)
    ours, theirs = student.state_dict(), teacher.state_dict()
    layer_of = dict(enumerate(alternate_layers(5, 3)))
    for name, value in ours.items():
        if name.startswith("transformer.h."):
            number, rest = name.removeprefix("transformer.h.").split(".", 1)
            name = f"transformer.h.{layer_of[int(number)]}.{rest}"
        assert torch.equal(value, theirs[name]), name
    assert student.config.n_layer == 3
    assert len(student.transformer.h) == 3
    assert student.config.activation_function == "relu"
    assert (student.lm_head.weight is student.transformer.wte.weight) == tied
    assert teacher.config.n_layer == 5, "the teacher's configuration is not touched"


def test_student_shares_no_memory_with_the_teacher() -> None:
    """Training the one must not change the other."""
    teacher = teacher_of()
    student = make_student(teacher, DistillOptions(), seed=0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_random_student() -> None:
    """Its seed decides it; nothing comes from the teacher."""
    teacher, options = teacher_of(), DistillOptions(random_init=True)
    first, second, other = (make_student(teacher, options, seed) for seed in (1, 1, 2))
    weight = first.transformer.wte.weight
    assert torch.equal(weight, second.transformer.wte.weight)
    assert not torch.equal(weight, other.transformer.wte.weight)
    assert not torch.equal(weight, teacher.transformer.wte.weight)
    assert len(first.transformer.h) == 2


@pytest.mark.parametrize("options", [SamplingOptions(temperature=0), SamplingOptions(top_k=20)])
def test_acceptance_by_hand(tmp_path: Path, options: SamplingOptions) -> None:
    """The share of tokens that both models draw alike, each given the text so far in its window."""
    teacher, student = teacher_of(4), teacher_of(2)
    ids = np.random.default_rng(1).integers(0, 50, 70).astype("<u2")
    ids.tofile(tmp_path / "ids.bin")
    file = TokenFile(tmp_path / "ids.bin", 70, 70, 1, "<u2")
    alike = []
    for place in range(70):
        text = torch.from_numpy(ids[place // 16 * 16 : place + 1].astype(np.int64))
        with torch.no_grad():
            logits = [model.eval()(text[None]).logits[0, -1].numpy() for model in (teacher, student)]
        one, other = (Sampler(options)(row, text.tolist(), 0, place + 1) for row in logits)
        alike.append(one == other)
    assert acceptance(teacher, student, file, 16, options) == pytest.approx(np.mean(alike))
    assert acceptance(teacher, teacher, file, 16, options) == 1
