"""``gpt2cli bench``: how fast a model runs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, get_args

import typer

from gpt2cli.cli import params
from gpt2cli.cli.environment import users_environment
from gpt2cli.cli.flags import ModelFlags, read_settings
from gpt2cli.cli.loading import model_to_measure
from gpt2cli.errors import UsageError
from gpt2cli.options import Precision
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.plots import check_plot_path
from gpt2cli.terminal.streams import Terminal

EXAMPLES = """Examples:

  gpt2cli bench -m gpt2 --against transformers

  gpt2cli bench -m gpt2 --against llama.cpp --gguf gpt2.F16.gguf --gguf gpt2.Q8_0.gguf

  gpt2cli bench --precision auto --precision int8 --json | jq .engines
"""

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "int8", "int4")


class Peer(StrEnum):
    """What ``--against`` takes."""

    TRANSFORMERS = "transformers"
    LLAMA = "llama.cpp"


def bench(
    ctx: typer.Context,
    model: params.Model = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    against: Annotated[
        list[Peer] | None,
        typer.Option(
            "--against",
            metavar="transformers|llama.cpp",
            help="Measure this, too, in the same rounds; repeatable.",
            show_default=False,
        ),
    ] = None,
    gguf: Annotated[
        list[Path] | None,
        typer.Option(
            "--gguf",
            metavar="FILE",
            help="The model for llama.cpp, which needs llama-completion and llama-bench on PATH; repeatable.",
            show_default=False,
        ),
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
    processes: Annotated[
        bool,
        typer.Option(
            "--processes/--no-processes", help="Whole processes: to the first, the 50th and the 300th token."
        ),
    ] = True,
    settled: Annotated[
        bool,
        typer.Option("--settled/--no-settled", help="The rates of a loaded model: prompts and steps."),
    ] = True,
    busy: Annotated[
        bool,
        typer.Option("--busy", help="The settled rates also with one core kept busy by another process."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw tokens over time into FILE.svg or .png.", show_default=False
        ),
    ] = None,
    json: params.Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The tables in Markdown, below the name of the machine.")
    ] = False,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    threads: params.Threads = None,
    debug: params.Debug = False,
) -> None:
    """How fast a model runs here: whole processes from their start, then settled rates, in each precision.

    Whole processes are timed by reading what they write: with the conversion cached, and the first time ever.

    Nothing else should run meanwhile; when something did, it is said.
    """
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, quiet)
    terminal.check_stdout()
    precisions = _precisions(precision)
    _check_together(json=json, markdown=markdown, processes=processes, settled=settled, busy=busy)
    if plot is not None:
        check_plot_path(plot)
    wanted: Sequence[Peer] = against or ()
    if gguf and Peer.LLAMA not in wanted:
        raise UsageError("--gguf needs --against llama.cpp")
    with terminal.signals.deferred():
        from gpt2cli.bench.peers import check_transformers, find_llama
        from gpt2cli.bench.report import as_json
        from gpt2cli.bench.runner import Plan, run_bench
        from gpt2cli.cli import bench_report
    if Peer.TRANSFORMERS in wanted:
        check_transformers()
    llama = find_llama(gguf or ()) if Peer.LLAMA in wanted else None
    flags = ModelFlags(
        model=model,
        adapter=None,
        revision=revision,
        offline=offline,
        allow_pickle=allow_pickle,
        device=device,
        precision=None,
        threads=threads,
    )
    found = model_to_measure(terminal, settings, flags)
    if found.resolved.adapter is not None:
        raise UsageError(
            f"{found.name}: bench measures models without adapters",
            hint="with one merged, a model is as fast as its base",
        )
    plan = Plan(
        found.checkpoint,
        found.load,
        users_environment(),
        precisions,
        rounds,
        processes=processes,
        settled=settled,
        busy=busy,
        transformers=Peer.TRANSFORMERS in wanted,
        llama=llama,
    )
    report = run_bench(plan, terminal.note)
    name = found.resolved.name
    if json:
        terminal.write(json_line({**found.head(), **as_json(report)}))
    elif markdown:
        terminal.write(bench_report.markdown(name, report))
    else:
        terminal.write(
            bench_report.table(name, report) if terminal.stdout_is_terminal else bench_report.tabs(report)
        )
    if plot is not None:
        bench_report.draw(plot, name, report)
    if report.spoiled:
        terminal.warn(
            f"other processes used {report.others:.1f} cores meanwhile: measure again on a quiet machine"
        )


def _check_together(*, json: bool, markdown: bool, processes: bool, settled: bool, busy: bool) -> None:
    """Raise `UsageError` for options that do not go together."""
    if json and markdown:
        raise UsageError("--json and --markdown do not go together")
    if busy and not settled:
        raise UsageError("--busy and --no-settled do not go together")
    if not processes and not settled:
        raise UsageError("--no-processes and --no-settled leave nothing to measure")


def _precisions(given: Sequence[str] | None) -> tuple[Precision, ...]:
    known = get_args(Precision)
    for name in given or ():
        if name not in known:
            raise UsageError(f"--precision {name}: one of {', '.join(known)}")
    return tuple(dict.fromkeys(given)) if given else DEFAULT_PRECISIONS  # type: ignore[arg-type]
