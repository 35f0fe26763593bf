"""Knowledge distillation, as DistilGPT2 was made from GPT-2 (Sanh et al. 2019, arXiv 1910.01108)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.errors import InvalidOption
from gpt2cli.train.options import DistillOptions
from gpt2cli.train.trainer import LanguageModelTrainer


def student_layers(teacher: int, options: DistillOptions) -> int:
    """How many layers the student has. Raises `InvalidOption`."""
    layers = options.layers if options.layers is not None else max(1, teacher // 2)
    if layers >= teacher:
        raise InvalidOption("student_layers", f"{layers} is not fewer than the teacher's {teacher}")
    return layers


def alternate_layers(teacher: int, student: int) -> list[int]:
    """Which of the teacher's layers the student starts from: evenly spread from the first to the last.

    Of 12 layers for 6 these are 0, 2, 4, 7, 9, 11, as in the script that made DistilGPT2.
    """
    if student == 1:
        return [0]
    return [round(n * (teacher - 1) / (student - 1)) for n in range(student)]


def make_student(teacher: GPT2LMHeadModel, options: DistillOptions, seed: int) -> GPT2LMHeadModel:
    """A student of the teacher's width with fewer layers."""
    layers = student_layers(teacher.config.n_layer, options)
    settings = {**teacher.config.to_dict(), "n_layer": layers}
    torch.manual_seed(seed)
    student = GPT2LMHeadModel(GPT2Config(**settings))
    if not options.random_init:
        source, target = teacher.transformer, student.transformer
        for part in ("wte", "wpe", "ln_f"):
            getattr(target, part).load_state_dict(getattr(source, part).state_dict())
        for to, layer in enumerate(alternate_layers(teacher.config.n_layer, layers)):
            target.h[to].load_state_dict(source.h[layer].state_dict())
        if not teacher.config.tie_word_embeddings:
            student.lm_head.load_state_dict(teacher.lm_head.state_dict())
    return student


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    targets: Tensor,
    options: DistillOptions,
) -> Tensor:
    """The weighted sum of the paper's three losses.

    Logits [N, V], last hidden states [N, D], targets [N]. The soft loss is the divergence summed over the
    vocabulary, averaged over the tokens, times the temperature squared.
    """
    total = student_logits.new_zeros((), dtype=torch.float32)
    if options.soft_weight:
        t = options.temperature
        soft = F.kl_div(
            F.log_softmax(student_logits.float() / t, -1),
            F.log_softmax(teacher_logits.float() / t, -1),
            reduction="batchmean",
            log_target=True,
        )
        total = total + options.soft_weight * t**2 * soft
    if options.lm_weight:
        total = total + options.lm_weight * F.cross_entropy(student_logits.float(), targets)
    if options.cosine_weight:
        cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
        total = total + options.cosine_weight * (1 - cosine).mean()
    return total


class DistillationTrainer(LanguageModelTrainer):
    """Trains the student on the teacher's distribution. The teacher stays as it is."""

    def __init__(self, *, teacher: GPT2LMHeadModel, distill: DistillOptions, **kwargs: Any) -> None:
        kept: Any = teacher
        self._teacher = kept
        self._teacher.eval().requires_grad_(False)
        self._distill = distill
        super().__init__(**kwargs)
        self._teacher.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss of the micro-batch."""
        ids = inputs["ids"]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bf16):
            ours = model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=True)
            with torch.no_grad():
                theirs = self._teacher(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=True)
        return distillation_loss(
            ours.logits.flatten(0, 1),
            theirs.logits.flatten(0, 1),
            ours.hidden_states[-1].flatten(0, 1),
            theirs.hidden_states[-1].flatten(0, 1),
            ids[:, 1:].flatten(),
            self._distill,
        )
