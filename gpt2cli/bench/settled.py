"""The rates of a loaded model, once it is warm: prompts, and steps of one text and of several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gpt2cli.bench.machine import busy_core
from gpt2cli.bench.report import Contender
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.backend import Batch
from gpt2cli.core.choose import open_backend
from gpt2cli.core.scheduler import Scheduler
from gpt2cli.core.sequence import Group
from gpt2cli.families import CausalConfig
from gpt2cli.options import GenerateOptions, LoadOptions, Precision

ROWS = 8
"""Texts at once."""
VERIFIED = (4, 8)
"""Tokens of one text in a pass, as drafts are verified."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of tokens: of prompts, of steps timed on end, and of the contexts these begin after."""

    prefills: tuple[int, ...]
    steps: int
    short: int
    long: int

    @classmethod
    def of(cls, config: CausalConfig) -> Sizes:
        """Prompts of 32 and 512, 32 steps, after 32 tokens and about 1,000; less where that does not fit."""
        context = config.n_positions
        steps = min(32, max(1, context // 3))
        longest = max(1, context - steps - 2)
        prefills = tuple(tokens for tokens in (32, 512) if tokens < context)
        return cls(prefills, steps, min(32, longest), min(1000 - steps // 2, longest))


class Runner(Protocol):
    """An engine that can be timed."""

    contender: Contender

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens, to the logits after it."""
        ...

    def decode(self, rows: int, context: int) -> float | None:
        """Seconds for `Sizes.steps` steps of ``rows`` texts after ``context`` tokens; None if it cannot."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class OurRunner:
    """A backend of ours, under a scheduler that draws as `generate` does."""

    def __init__(
        self, checkpoint: Checkpoint, load: LoadOptions, precision: Precision, contender: Contender
    ) -> None:
        self.contender = contender
        self._backend = open_backend(checkpoint, replace(load, precision=precision))
        self._steps = Sizes.of(checkpoint.config).steps
        contender.kernels = self._backend.info.kernels

    def prefill(self, tokens: int) -> float:
        slot = self._backend.new_slot()
        batch = Batch.of([(slot, 0, prompt_ids(self._backend.config, tokens))])
        started = time.perf_counter()
        self._backend.forward(batch)
        taken = time.perf_counter() - started
        self._backend.free_slot(slot)
        return taken

    def decode(self, rows: int, context: int) -> float:
        options = GenerateOptions(seed=0, num_return_sequences=rows, draft="off")
        ids = prompt_ids(self._backend.config, context)
        drawn = self._drawn(Group(ids, options, max_new_tokens=self._steps + 1))
        # The first token of each row comes with the prompt.
        return drawn[-1] - drawn[rows - 1]

    def drafts(self) -> dict[str, float]:
        """What drafts cost and bring: `Contender` has the measures."""
        one, *several = (self._verify(tokens) for tokens in (1, *VERIFIED))
        found = {f"verify_{n}_ratio": taken / one for n, taken in zip(VERIFIED, several, strict=True)}
        (off, _), (auto, guessed) = (self._repeat(draft) for draft in ("off", "auto"))
        return {**found, "draft_ratio": off / auto, "draft_share": guessed}

    def _verify(self, tokens: int) -> float:
        """Seconds of a pass over so many tokens of one text, with logits after each."""
        ids = prompt_ids(self._backend.config, 8 + tokens)
        slot, taken = self._backend.new_slot(), []
        self._backend.forward(Batch.of([(slot, 0, ids[:8])]))
        for _ in range(self._steps):
            started = time.perf_counter()
            self._backend.forward(Batch.of([(slot, 8, ids[8:])], range(tokens)))
            taken.append(time.perf_counter() - started)
        self._backend.free_slot(slot)
        return statistics.median(taken)

    def _repeat(self, draft: str) -> tuple[float, float]:
        """Seconds for a greedy text after one that repeats, and the share of it that was guessed right."""
        config = self._backend.config
        ids = (prompt_ids(config, 16) * 4)[: max(1, config.n_positions // 2)]
        new = max(2, min(4 * self._steps, config.n_positions - len(ids) - 1))
        group = Group(ids, GenerateOptions(seed=0, temperature=0, draft=draft), max_new_tokens=new)
        drawn = self._drawn(group)
        return drawn[-1] - drawn[0], group.stats.accepted / new

    def _drawn(self, group: Group) -> list[float]:
        """When each token of a request was drawn."""
        scheduler = Scheduler(self._backend)
        scheduler.admit([group])
        try:
            return [time.perf_counter() for step in scheduler.run() if step is not None]
        finally:
            scheduler.drop([group])

    def close(self) -> None:
        self._backend.close()


def prompt_ids(config: CausalConfig, tokens: int) -> list[int]:
    """A prompt that any model takes."""
    return [(7 * n + 11) % config.vocab_size for n in range(tokens)]


def measure_round(runner: Runner, sizes: Sizes, *, keep: bool) -> None:
    """One round of an engine; without ``keep`` it only warms it up."""
    found = {f"prefill_{tokens}": tokens / runner.prefill(tokens) for tokens in sizes.prefills}
    one = runner.decode(1, sizes.short)
    several = runner.decode(ROWS, sizes.short)
    if one is not None:
        found["decode_1"] = sizes.steps / one
    if several is not None:
        found[f"decode_{ROWS}"] = ROWS * sizes.steps / several
    if sizes.long > 2 * sizes.short:
        long = runner.decode(1, sizes.long)
        if long is not None and one is not None:
            found["decode_long"] = sizes.steps / long
            found["step_ratio"] = long / one
    if isinstance(runner, OurRunner):
        found |= runner.drafts()
    if keep:
        for measure, value in found.items():
            runner.contender.add(measure, value)


def measure_busy(runners: Sequence[Runner], sizes: Sizes) -> None:
    """One round of all engines with one core kept busy, after one without."""
    quiet = [_busy_measures(runner, sizes) for runner in runners]
    with busy_core():
        for runner, before in zip(runners, quiet, strict=True):
            for measure, seconds in _busy_measures(runner, sizes).items():
                runner.contender.add(measure, before[measure] / seconds)


def _busy_measures(runner: Runner, sizes: Sizes) -> dict[str, float]:
    """Seconds."""
    found: dict[str, float] = {}
    if sizes.prefills:
        found["busy_prefill_ratio"] = runner.prefill(sizes.prefills[-1])
    if (taken := runner.decode(1, sizes.short)) is not None:
        found["busy_decode_ratio"] = taken
    return found
