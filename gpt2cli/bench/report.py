"""What was measured, and what it comes to: medians over rounds, and ratios taken round by round."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["gpt2cli", "transformers", "llama.cpp"]
Points = dict[str, list[tuple[float, float]]]

SPOILED_CORES = 0.15
"""Other processes' use of the machine, in cores, from which figures are called spoiled."""
WINDOW = 10
"""Tokens whose rate is compared with that of others of the same run."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over all rounds: median, lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def document(self) -> dict[str, float]:
        """The figure in JSON."""
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(slots=True)
class Contender:
    """What was measured of one engine, a value a round.

    Of whole processes: ``first_token_s`` and ``token_N_s``, seconds from the start of the process until the
    token can be read; ``exit_s``, from its last output to its end; ``first_run_…_s``, the same of a run that
    converts the model first; ``early_ratio`` and ``slowest_ratio`` (`evenness`); ``private_bytes`` and
    ``mapped_bytes`` at their highest (or ``peak_bytes``, both together, where the system tells no more), of a
    first run ``first_run_private_bytes``.

    Of a loaded model: ``prefill_N``, ``decode_ROWS`` and ``decode_long`` in tokens per second;
    ``verify_N_ratio``, the time of a pass over N tokens of one text over that of one; ``draft_ratio``, the
    rate of a greedy text that begins with repetitions with ``draft`` ``auto`` over ``off``, and
    ``draft_share``, how much of it was guessed right; ``step_ratio``, the time of a step at a long context
    over one at a short; ``busy_decode_ratio`` and
    ``busy_prefill_ratio``, the rate with one core kept busy over the quiet one.
    """

    name: str
    kind: Kind = "gpt2cli"
    kernels: tuple[str, ...] = ()
    values: dict[str, list[float]] = field(default_factory=dict)
    arrivals: list[list[float]] = field(default_factory=list)
    """For each round, when each token was there, in seconds from the start of the process."""

    def add(self, measure: str, value: float) -> None:
        """One round's value."""
        self.values.setdefault(measure, []).append(value)

    def add_run(self, arrivals: list[float], milestones: Sequence[int]) -> None:
        """A process that gave a token at each of ``arrivals``."""
        self.arrivals.append(arrivals)
        for number in milestones:
            self.add(milestone(number), arrivals[number - 1])
        for measure, value in evenness(arrivals).items():
            self.add(measure, value)

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures, over the rounds so far."""
        return {measure: Figure.of(values) for measure, values in self.values.items()}

    @property
    def typical_run(self) -> list[float]:
        """The arrivals of the round whose last token came at the median time, the earlier of two; or none."""
        runs = sorted(self.arrivals, key=lambda arrivals: arrivals[-1])
        return runs[(len(runs) - 1) // 2] if runs else []


def milestone(token: int) -> str:
    """The measure of the time until the ``token``-th token, from 1."""
    return "first_token_s" if token == 1 else f"token_{token}_s"


def evenness(arrivals: Sequence[float]) -> dict[str, float]:
    """Whether a process runs at its full rate from the start, and all the time; empty below 50 tokens.

    ``early_ratio``: the rate of tokens 1-10 over that of tokens 40-50. ``slowest_ratio``: the rate of the
    slowest ten tokens on end over that of the median ten.
    """
    if len(arrivals) < 50:
        return {}
    early = (arrivals[WINDOW - 1] - arrivals[0]) / (WINDOW - 1)
    late = (arrivals[49] - arrivals[39]) / 10
    spans = [end - begin for begin, end in zip(arrivals, arrivals[WINDOW:], strict=False)]
    usual = statistics.median(spans)
    # A reader that was kept waiting finds many tokens at once.
    if not (early and late and usual):
        return {}
    return {"early_ratio": late / early, "slowest_ratio": usual / max(spans)}


@dataclass(slots=True)
class Report:
    """A whole benchmark. ``others`` is how many cores other processes used meanwhile, None where unknown."""

    machine: dict[str, Any]
    contenders: list[Contender]
    rounds: int = 0
    import_torch: list[float] = field(default_factory=list)
    """Seconds that ``python -c "import torch"`` takes, a value a round."""
    others: float | None = None

    @property
    def spoiled(self) -> bool:
        """Whether the machine was too busy for the figures to be trusted."""
        return self.others is not None and self.others > SPOILED_CORES

    @property
    def peers(self) -> list[Contender]:
        """The engines that are not ours."""
        return [each for each in self.contenders if each.kind != "gpt2cli"]

    @property
    def yardstick(self) -> Contender | None:
        """The peer that a table compares with: transformers where it was measured, or the first."""
        return next(iter(sorted(self.peers, key=lambda peer: peer.kind != "transformers")), None)


def times_as_fast(contender: Contender, peer: Contender, measure: str) -> float | None:
    """How many times as fast as ``peer``: the median of the ratios of each round; None where there is none.

    Of rounds, because a machine that slows down slows both down.
    """
    ours, theirs = contender.values.get(measure), peer.values.get(measure)
    if ours is None or theirs is None or contender is peer:
        return None
    pairs = list(zip(ours, theirs, strict=False))
    if measure.startswith(("prefill_", "decode_")):
        return statistics.median(rate / other for rate, other in pairs)
    if measure.endswith("_s"):
        return statistics.median(other / seconds for seconds, other in pairs)
    return None


def as_json(report: Report) -> dict[str, Any]:
    """The report as a document."""
    imported = Figure.of(report.import_torch).document() if report.import_torch else None
    return {
        "machine": report.machine,
        "rounds": report.rounds,
        "other_processes_cores": report.others,
        "spoiled": report.spoiled,
        "import_torch_s": imported,
        "engines": [_engine(report, contender) for contender in report.contenders],
    }


def _engine(report: Report, contender: Contender) -> dict[str, Any]:
    first = contender.values.get("first_token_s", [])
    pairs = list(zip(first, report.import_torch, strict=False))
    return {
        "name": contender.name,
        "kind": contender.kind,
        "kernels": contender.kernels,
        "figures": {measure: figure.document() for measure, figure in contender.figures.items()},
        "times_as_fast": {
            peer.name: _ratios(contender, peer) for peer in report.peers if peer is not contender
        },
        "first_token_to_import_torch": statistics.median(a / b for a, b in pairs) if pairs else None,
        "arrivals_s": [round(seconds, 4) for seconds in contender.typical_run],
    }


def _ratios(contender: Contender, peer: Contender) -> Mapping[str, float]:
    found = {measure: times_as_fast(contender, peer, measure) for measure in contender.values}
    return {measure: ratio for measure, ratio in found.items() if ratio is not None}


def series(report: Report) -> tuple[Points, Points]:
    """What a plot shows of each engine: (seconds, tokens there), and (texts at once, tokens a second)."""
    arrived = {
        each.name: [(seconds, float(n)) for n, seconds in enumerate(each.typical_run, 1)]
        for each in report.contenders
    }
    rates: Points = {}
    for each, rows in itertools.product(report.contenders, (1, 8)):
        if (figure := each.figures.get(f"decode_{rows}")) is not None:
            rates.setdefault(each.name, []).append((float(rows), figure.median))
    return {name: points for name, points in arrived.items() if points}, rates
