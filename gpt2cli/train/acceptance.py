"""How well a student guesses ahead for its teacher (`core/drafts.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from gpt2cli.core.backend import Floats
from gpt2cli.core.sampling import Sampler
from gpt2cli.options import SamplingOptions
from gpt2cli.train.tokens import TokenFile

POSITIONS = 4096
"""Tokens of the text that are drawn for; a share of them is known to about one per cent."""


def acceptance(
    teacher: PreTrainedModel, student: PreTrainedModel, file: TokenFile, window: int, options: SamplingOptions
) -> float:
    """The share of tokens of a held-back text at which the student draws what the teacher draws.

    Both have read the text so far, in windows side by side, and draw with the same noise by ``options``. That
    is how often the first draft of a pass is right.
    """
    sampler, right, drawn = Sampler(options), 0, 0
    for start, ids, rows in _windows(teacher, student, file, window):
        for n, pair in enumerate(zip(*rows, strict=True)):
            one, other = (sampler(logits, ids[: n + 1], 0, start + n + 1) for logits in pair)
            right += one == other
            drawn += 1
    return right / drawn


def _windows(
    teacher: PreTrainedModel, student: PreTrainedModel, file: TokenFile, window: int
) -> Iterator[tuple[int, list[int], list[Floats]]]:
    """Where each window begins, its ids [T], and the logits [T, V] of both models after each of them."""
    ids = file.map()[:POSITIONS]
    for start in range(0, len(ids), window):
        part = torch.from_numpy(ids[start : start + window].astype(np.int64))
        yield start, part.tolist(), [_logits(model, part) for model in (teacher, student)]


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> Floats:
    """ids [T] -> logits [T, V] in fp32, without dropout."""
    training, module = model.training, cast(torch.nn.Module, model)
    module.eval()
    try:
        logits = module(ids[None].to(model.device), use_cache=False).logits[0]
    finally:
        module.train(training)
    found: Floats = logits.float().cpu().numpy()
    return found
