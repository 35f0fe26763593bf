"""The order of training: which tokens each step sees, a pure function of the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gpt2cli.errors import InvalidOption, UsageError
from gpt2cli.train.options import TrainOptions
from gpt2cli.train.tokens import Ids

MAX_LOGITS = 2**26
"""Logits made at a time, unless a micro-batch size is given: 256 MiB of fp32."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A training in numbers."""

    steps: int
    window: int
    batch_size: int
    """Windows a step."""
    micro_batch_size: int
    short_window: int
    short_steps: int
    """The first steps, which see as many tokens in windows of ``short_window``."""
    tokens: int
    """Tokens in the training text."""

    @property
    def accumulation(self) -> int:
        """Micro-batches a step."""
        return self.batch_size // self.micro_batch_size

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens in one optimizer step."""
        return self.batch_size * self.window

    @property
    def epochs(self) -> float:
        """How often each token is seen."""
        return self.steps * self.tokens_per_step / self.tokens

    def window_at(self, step: int) -> int:
        """Tokens a window in ``step`` (from 0)."""
        return self.short_window if step < self.short_steps else self.window


def make_plan(options: TrainOptions, *, tokens: int, context: int, vocab_size: int) -> Plan:
    """Settle what the options leave open. Raises `UsageError` when the text is shorter than a window."""
    window = options.window or min(context, 1024)
    if window > context:
        raise InvalidOption("window", f"{window} is more than the model's context of {context}")
    if tokens <= window:
        raise UsageError(
            f"the training text has {tokens} tokens: too few for a window of {window}",
            hint="give more text, or a shorter --window",
        )
    short = options.short_window or window
    if window % short:
        raise InvalidOption("short_window", f"the window of {window} is not divisible by {short}")
    per_step = options.batch_size * window
    steps = options.steps or max(1, math.ceil((options.epochs or 1) * tokens / per_step))
    micro = options.micro_batch_size or _micro_batch(options.batch_size, window, vocab_size)
    return Plan(
        steps=steps,
        window=window,
        batch_size=options.batch_size,
        micro_batch_size=micro,
        short_window=short,
        short_steps=round(options.short_share * steps) if options.short_window else 0,
        tokens=tokens,
    )


def _micro_batch(batch_size: int, window: int, vocab_size: int) -> int:
    """The largest divisor of the batch whose logits stay below the limit."""
    most = max(1, MAX_LOGITS // (window * vocab_size))
    return max(size for size in range(1, batch_size + 1) if batch_size % size == 0 and size <= most)


class WindowDataset(Dataset[Tensor]):
    """Item (start, window) is the ids [window + 1] from ``start`` on."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def __getitem__(self, index: tuple[int, int]) -> Tensor:
        start, window = index
        return torch.from_numpy(self._ids[start : start + window + 1].astype(np.int64))


class WindowSampler(Sampler[list[tuple[int, int]]]):
    """Micro-batches of (start, window) for all steps of a plan.

    An epoch cuts the text into windows at an offset of its own and shuffles them.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan, self._seed = plan, seed

    def __len__(self) -> int:
        return self._plan.steps * self._plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self._plan
        phases = ((plan.short_window, 0, plan.short_steps), (plan.window, plan.short_steps, plan.steps))
        for phase, (window, first, last) in enumerate(phases):
            size = plan.micro_batch_size * plan.window // window
            starts = self._starts(phase, window)
            for _ in range((last - first) * plan.accumulation):
                yield [(next(starts), window) for _ in range(size)]

    def _starts(self, phase: int, window: int) -> Iterator[int]:
        tokens, epoch = self._plan.tokens, 0
        while True:
            random = np.random.default_rng((self._seed, phase, epoch))
            offset = int(random.integers(0, min(window, tokens - window)))
            for index in random.permutation((tokens - 1 - offset) // window):
                yield offset + int(index) * window
            epoch += 1
