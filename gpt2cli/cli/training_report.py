"""What a user sees of a training: events as JSON lines, or lines and a curve on stderr."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.hub.registry import ModelName
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.plots import chart, save_plot
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.train.facts import Facts

LINE_EVERY_S = 30.0
"""Between two lines of progress where nothing can be redrawn."""
CHART_HEIGHT = 12
SAMPLE_CHARS = 400


class TrainingReport:
    """Takes the events of one training."""

    def __init__(self, terminal: Terminal, *, jsonl: bool) -> None:
        self._terminal, self._jsonl = terminal, jsonl
        self._last_line = 0.0

    def event(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if self._jsonl:
            self._terminal.write(json_line(event))
        show = getattr(self, f"_show_{event['event']}", None)
        if show is not None:
            show(event)

    def _show_tokenizer(self, event: dict[str, Any]) -> None:
        self._terminal.note(f"training a tokenizer of {event['vocab_size']:,} entries")

    def _show_start(self, event: dict[str, Any]) -> None:
        files = "1 file" if event["files"] == 1 else f"{event['files']} files"
        self._terminal.note(
            f"{files}: {event['train_tokens']:,} tokens to train on, {event['validation_tokens']:,} held back"
        )
        if event["excluded_documents"]:
            self._terminal.warn(
                f"{event['excluded_documents']} documents are in the validation or test data too; left out"
            )
        trained = event["parameters"]
        some = f", {event['trainable']:,} of them trained" if event["trainable"] < trained else ""
        self._terminal.note(
            f"{event['parameters']:,} parameters{some} · {event['steps']:,} steps of "
            f"{event['tokens_per_step']:,} tokens ({event['epochs']:.2f} epochs) · {event['precision']} on "
            f"{event['device']} · seed {event['seed']}"
        )

    def _show_resume(self, event: dict[str, Any]) -> None:
        where = Path(event["checkpoint"]).name if event["checkpoint"] else "the beginning: no checkpoint"
        self._terminal.note(f"going on from {where}")

    def _show_step(self, event: dict[str, Any]) -> None:
        rate = f"{event['tokens_per_s']:,.0f} tokens/s" if event["tokens_per_s"] else ""
        line = (
            f"step {event['step']:,}/{event['steps']:,} · loss {event['loss']:.3f} · {rate} · "
            f"{duration(event['time_left_s'])} left"
        )
        if not self._terminal.live(line) and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._terminal.note(line)

    def _show_evaluation(self, event: dict[str, Any]) -> None:
        self._terminal.note(
            f"step {event['step']:,} · validation: loss {event['loss']:.4f} · perplexity "
            f"{event['perplexity']:.2f} · {event['bits_per_byte']:.4f} bits per byte"
        )

    def _show_sample(self, event: dict[str, Any]) -> None:
        text = one_line(event["text"])
        self._terminal.note(f"step {event['step']:,} · sample: {text[:SAMPLE_CHARS]}")

    def _show_early_stop(self, event: dict[str, Any]) -> None:
        self._terminal.note(f"step {event['step']:,} · no better for a while: stopping")

    def interrupted(self, step: int, command: str, directory: Path | None, name: ModelName | None) -> None:
        """Say how to go on; ``directory`` is what --output gave."""
        where = " ".join(
            f"{flag} {shlex.quote(str(value))}"
            for flag, value in (("--output", directory), ("--name", name and name.given))
            if value is not None
        )
        self._terminal.note(f"stopped after step {step:,}; go on with: gpt2cli {command} --resume {where}")

    def finish(self, facts: Facts, place: str, plot: Path | None, adapter: Path | None) -> None:
        """Show the curve and the figures, and print where the model is, and the adapter that was kept."""
        series = _series(facts)
        for line in chart(
            series,
            width=min(self._terminal.width, 100),
            height=CHART_HEIGHT,
            unicode=self._terminal.styled,
            x_label="step",
            y_label="loss",
        ):
            self._terminal.note(line)
        if plot is not None:
            save_plot(plot, series, title=facts.recipe.export.title or place, x_label="step", y_label="loss")
        before = f"{facts.start.bits_per_byte:.4f} -> " if facts.start else ""
        self._terminal.note(
            f"validation: {before}{facts.final.bits_per_byte:.4f} bits per byte, perplexity "
            f"{facts.final.perplexity:.2f}"
        )
        for test in facts.tests:
            self._terminal.note(f"{test.file}: {test.score.bits_per_byte:.4f} bits per byte")
        if facts.acceptance is not None:
            teacher = facts.recipe.base_name or facts.recipe.base
            self._terminal.note(
                f"it draws its teacher's token {facts.acceptance:.0%} of the time: "
                f"gpt2cli generate -m {teacher} --draft {place}"
            )
        if adapter is not None:
            base = facts.recipe.base_name or facts.recipe.base
            self._terminal.note(f"the adapter: gpt2cli generate -m {base} --adapter {adapter}")
        self._terminal.note(f"try it: gpt2cli generate -m {place}")
        if not self._jsonl:
            self._terminal.write(f"{place}\n")


def _series(facts: Facts) -> dict[str, list[tuple[float, float]]]:
    """Loss over steps."""
    series: dict[str, list[tuple[float, float]]] = {"training": [], "validation": []}
    for event in facts.curve:
        kind = "training" if event["event"] == "step" else "validation"
        series[kind].append((event["step"], event["loss"]))
    return {name: points for name, points in series.items() if points}


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
