"""The report of ``gpt2cli bench``: tables for a terminal and for Markdown, lines of tabs, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.bench.report import Contender, Figure, Report, series, times_as_fast
from gpt2cli.terminal.plots import Panel, save_panels
from gpt2cli.terminal.table import aligned, shown_bytes, tab_separated
from gpt2cli.text.sanitize import one_line


@dataclass(frozen=True, slots=True)
class Part:
    """A table: its title, and a column for each measure."""

    title: str
    columns: dict[str, str]


_PARTS = (
    Part(
        "whole processes: seconds from the start until a token can be read",
        {
            "first_token_s": "first token",
            "token_50_s": "50th",
            "token_300_s": "300th",
            "first_run_first_token_s": "first run ever: first token",
            "first_run_token_50_s": "its 50th",
        },
    ),
    Part(
        "the same processes: memory at its highest, and rates within a run over each other",
        {
            "private_bytes": "private memory",
            "mapped_bytes": "mapped files",
            "peak_bytes": "memory",
            "early_ratio": "tokens 1-10 / 40-50",
            "slowest_ratio": "slowest ten / median ten",
        },
    ),
    Part(
        "settled: tokens a second of a loaded model, after a round of warm-up",
        {
            "decode_1": "decode",
            "decode_8": "8 at once",
            "decode_long": "long context",
            "prefill_32": "prefill 32",
            "prefill_512": "prefill 512",
        },
    ),
    Part(
        "settled: a pass over several tokens of a text over one of a single token; a text that repeats",
        {
            "verify_4_ratio": "4 / 1 tokens",
            "verify_8_ratio": "8 / 1 tokens",
            "draft_ratio": "draft auto / off",
            "draft_share": "guessed right",
        },
    ),
    Part(
        "settled: a step at a long context over one at 32; rates with one core kept busy over quiet ones",
        {
            "step_ratio": "step, long / 32",
            "busy_decode_ratio": "decode, busy / quiet",
            "busy_prefill_ratio": "prefill, busy / quiet",
        },
    ),
)


def table(name: str, report: Report) -> str:
    """What a person reads."""
    lines = [*_head(name, report)]
    for part in _PARTS:
        header, rows = _rows(report, part)
        if rows:
            lines += ["", part.title, *aligned(header, rows, right=range(1, len(header)))]
    return "".join(f"{one_line(line)}\n" for line in lines)


def markdown(name: str, report: Report) -> str:
    """The same for a document."""
    lines = [" ".join(_head(name, report))]
    for part in _PARTS:
        header, rows = _rows(report, part)
        if rows:
            lines += ["", f"{part.title[0].upper()}{part.title[1:]}:", ""]
            lines += [_markdown_row(header), "|".join(["", "---", *["--:"] * (len(header) - 1), ""])]
            lines += map(_markdown_row, rows)
    return "".join(f"{one_line(line)}\n" for line in lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def tabs(report: Report) -> str:
    """What a program reads: a line an engine, medians in seconds, bytes, tokens a second, and ratios."""
    measures = [measure for part in _PARTS for measure in part.columns if _measured(report, measure)]
    rows = [
        (each.name, *(_plain(each.figures.get(measure)) for measure in measures))
        for each in report.contenders
    ]
    return tab_separated([("engine", *measures), *rows])


def _plain(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.median:.5g}" if figure.median < 1e5 else f"{figure.median:.0f}"


def _measured(report: Report, measure: str) -> bool:
    return any(measure in each.values for each in report.contenders)


def _rows(report: Report, part: Part) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and the rows of a table, without columns and rows that would be empty."""
    measures = [measure for measure in part.columns if _measured(report, measure)]
    rows = [
        (each.name, *(_cell(report, each, measure) for measure in measures))
        for each in report.contenders
        if any(measure in each.values for measure in measures)
    ]
    return ("", *(part.columns[measure] for measure in measures)), rows


def _cell(report: Report, contender: Contender, measure: str) -> str:
    figure, peer = contender.figures.get(measure), report.yardstick
    if figure is None:
        return "-"
    ratio = times_as_fast(contender, peer, measure) if peer else None
    return _shown(measure, figure.median) + (f" ({_digits(ratio)}x)" if ratio is not None else "")


def _shown(measure: str, value: float) -> str:
    if measure.endswith("_bytes"):
        return shown_bytes(value)
    if measure.endswith(("_s", "_ratio")):
        return f"{value:.2f}"
    if measure.endswith("_share"):
        return f"{value:.0%}"
    return f"{value:,.{0 if value >= 100 else 1}f}"


def _digits(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 0.995 else 1 if ratio < 9.95 else 0}f}"


def _head(name: str, report: Report) -> list[str]:
    """The machine, and how to read the tables."""
    machine: dict[str, Any] = report.machine
    where = [f"{machine['cores']} cores", f"{machine['threads']} threads", machine["system"]]
    where += [machine["device"]] if machine["device"] != "cpu" else []
    where += [f"kernels: {machine['kernels']}", f"Python {machine['python']}"]
    where += [f"{library} {machine[library]}" for library in ("torch", "transformers") if library in machine]
    where += _llama_build(report)
    lines = [f"{name} on {machine['processor']}: {', '.join(where)}."]
    peer = report.yardstick
    beside = f", and times as fast as {peer.name}" if peer else ""
    lines.append(f"Medians of {report.rounds} rounds{beside}.")
    if report.import_torch:
        lines.append(f"python -c 'import torch' takes {Figure.of(report.import_torch).median:.2f} s.")
    if report.spoiled:
        lines.append(f"Other processes used {report.others:.1f} cores meanwhile.")
    return lines


def _llama_build(report: Report) -> list[str]:
    return [
        f"llama.cpp {each.kernels[0]}" for each in report.peers if each.kind == "llama.cpp" and each.kernels
    ][:1]


def draw(path: Path, name: str, report: Report) -> None:
    """The tokens of whole processes over time, and the settled rates, one below the other."""
    arrived, rates = series(report)
    panels = []
    if arrived:
        panels.append(Panel(arrived, f"{name}: whole processes", "seconds from the start", "tokens"))
    if rates:
        panels.append(Panel(rates, f"{name}: settled", "texts at once", "tokens a second"))
    save_panels(path, panels)
