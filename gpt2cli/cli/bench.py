"""``gpt2cli bench``: how fast a model runs on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from gpt2cli.cli import params
from gpt2cli.cli.loading import find_model, start
from gpt2cli.errors import UsageError
from gpt2cli.options import Precision
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.plots import check_plot_path, save_plot
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import aligned, shown_bytes, tab_separated

if TYPE_CHECKING:
    from gpt2cli.bench import Contender, Figure, Report

EXAMPLES = """Examples:

  gpt2cli bench -m gpt2 --against transformers

  gpt2cli bench --precision auto --precision int8 --json | jq .engines
"""

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "int8", "int4")


def bench(
    ctx: typer.Context,
    model: params.Model = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    against: Annotated[
        Literal["transformers"] | None,
        typer.Option("--against", help="Measure this, too, in the same rounds.", show_default=False),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="P",
            help=f"{', '.join(get_args(Precision))}; repeatable. Default: all but fp16, which auto often is.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Each figure is a median.")] = 5,
    busy: Annotated[
        bool, typer.Option("--busy", help="Also with one core kept busy by another process.")
    ] = False,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="The first token of a new process, and its memory.")
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw tokens a second into FILE.svg or .png.", show_default=False
        ),
    ] = None,
    json: params.Json = False,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    threads: params.Threads = None,
    debug: params.Debug = False,
) -> None:
    """How fast a model runs here: loading, first token, prefill and decoding in each precision.

    Nothing else should run meanwhile; when something did, it is said.
    """
    terminal: Terminal = ctx.obj
    settings = start(terminal, ctx.params)
    terminal.check_stdout()
    precisions = _precisions(precision)
    if plot is not None:
        check_plot_path(plot)
    found = find_model(terminal, settings, {**ctx.params, "precision": None})
    with terminal.signals.deferred():
        from gpt2cli.bench import as_json, run_bench
    report = run_bench(
        found.checkpoint,
        found.load,
        precisions,
        against_transformers=against is not None,
        rounds=rounds,
        busy=busy,
        cold=cold,
        report=terminal.note,
    )
    if json:
        terminal.write(json_line({**found.head(), **as_json(report)}))
    else:
        terminal.write(_table(terminal, found.resolved.name, report))
    if plot is not None:
        _draw(plot, found.resolved.name, report)
    if report.spoiled:
        terminal.warn(
            f"other processes used {report.others:.1f} cores meanwhile: measure again on a quiet machine"
        )


def _precisions(given: Sequence[str] | None) -> tuple[Precision, ...]:
    known = get_args(Precision)
    for name in given or ():
        if name not in known:
            raise UsageError(f"--precision {name}: one of {', '.join(known)}")
    return tuple(dict.fromkeys(given)) if given else DEFAULT_PRECISIONS  # type: ignore[arg-type]


_TITLES = {
    "load_s": "load",
    "prefill_32": "prefill 32",
    "prefill_512": "prefill 512",
    "decode_1": "decode",
    "decode_8": "decode, 8 at once",
    "decode_long": "decode, long context",
    "step_ratio": "a step there / at 32",
    "busy_ratio": "a core busy / quiet",
    "first_token_s": "first token, cold",
    "peak_bytes": "its peak memory",
}


def _table(terminal: Terminal, name: str, report: Report) -> str:
    measures = [m for m in _TITLES if any(m in each.values for each in report.contenders)]
    header = ("", *(each.name for each in report.contenders))
    rows = [(_TITLES[m], *(_cell(report, each, m) for each in report.contenders)) for m in measures]
    if not terminal.stdout_is_terminal:
        return tab_separated([header, *rows])
    machine = report.machine
    lines = [
        f"{name} on {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}",
        "tokens a second (median, lowest and highest of the rounds), and the ratio to transformers",
        "",
        *aligned(header, rows, right=range(1, len(header))),
    ]
    if report.import_torch:
        alone = statistics.median(report.import_torch)
        lines.append(f"python -c 'import torch' alone takes {alone:.2f} s")
    return "".join(f"{line}\n" for line in lines)


def _cell(report: Report, contender: Contender, measure: str) -> str:
    figure = contender.figures.get(measure)
    if figure is None:
        return "-"
    ratio = report.ratio(contender, measure) if measure.startswith(("dec", "pre")) else None
    beside = f" {ratio:.1f}x" if ratio is not None and contender is not report.yardstick() else ""
    return _shown(measure, figure) + beside


def _shown(measure: str, figure: Figure) -> str:
    if measure == "peak_bytes":
        return shown_bytes(figure.median)
    if measure.endswith("_s"):
        return f"{figure.median:.2f} s"
    if measure.endswith("_ratio"):
        return f"{figure.median:.2f}"
    digits = 0 if figure.median >= 100 else 1
    return f"{figure.median:.{digits}f} ({figure.low:.{digits}f}-{figure.high:.{digits}f})"


def _draw(path: Path, name: str, report: Report) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for contender in report.contenders:
        figures: dict[str, Any] = contender.figures
        series[contender.name] = [(rows, figures[f"decode_{rows}"].median) for rows in (1, 8)]
    save_plot(path, series, title=name, x_label="sequences at once", y_label="tokens a second")
