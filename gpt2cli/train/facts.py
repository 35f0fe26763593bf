"""What happened in a training, measured: what its card is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.train.options import Recipe
from gpt2cli.train.tokens import TokenSet
from gpt2cli.train.trainer import Score
from gpt2cli.train.windows import Plan


@dataclass(frozen=True, slots=True)
class FileScore:
    """How well the finished model predicts one test file."""

    file: str
    sha256: str
    score: Score


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened in a training, measured, for its card."""

    recipe: Recipe
    plan: Plan
    parameters: int
    trainable: int
    """Weights that were trained: fewer than ``parameters`` with LoRA."""
    data: Sequence[dict[str, Any]]
    """Every file: use, file, bytes, sha256."""
    tokens: TokenSet
    excluded_documents: int
    split_by_document: bool
    steps_done: int
    start: Score | None
    """On the validation text before the first step; None when the training was resumed."""
    final: Score
    """On the validation text, with the weights as saved."""
    tests: Sequence[FileScore]
    curve: Sequence[dict[str, Any]]
    """The events ``step`` and ``evaluation``, in order."""
    bf16: bool
    device: str
    acceptance: float | None = None
    """How often a student draws its teacher's token on the validation text, by the teacher's own sampling
    options; None where there is no teacher."""

    @property
    def training_s(self) -> float:
        """Seconds spent in training steps, over all resumptions."""
        seconds, before = 0.0, 0
        for event in self.curve:
            if event["event"] == "step" and event["tokens_per_s"]:
                seconds += (event["tokens"] - before) / event["tokens_per_s"]
                before = event["tokens"]
        return seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that the finished model drew."""

    seed: int
    text: str
