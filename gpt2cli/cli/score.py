"""``gpt2cli score``: what a model thinks of given texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params
from gpt2cli.cli.flags import read_flags, read_settings
from gpt2cli.cli.loading import FoundModel, load_engine, model_to_measure
from gpt2cli.cli.presets import use_preset
from gpt2cli.cli.score_options import Job, Normalize, ScoreFlags, read_options
from gpt2cli.cli.sources import open_source
from gpt2cli.errors import UsageError
from gpt2cli.options import ScoreTask
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.analysis.windows import WindowOptions
    from gpt2cli.core.engine import Engine

EXAMPLES = """Examples:

  gpt2cli score "The capital of France is Paris"

  gpt2cli score -m gpt2 -f wiki.test.raw --stride 512

  gpt2cli score --lines --jsonl -f sentences.txt

  gpt2cli score --choices " Paris, London, Rome" "The capital of France is"

  gpt2cli score -m gpt2 --task lambada lambada_test.jsonl
"""

_TEXTS, _CHOICES, _SHOWN = "Texts", "Choices and tasks", "Output"


def _flag(panel: str, *names: str, help: str) -> Any:
    return typer.Option(*names, help=help, metavar="", rich_help_panel=panel, show_default=False)


def _value(panel: str, *names: str, metavar: str | None = None, help: str) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


def score(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="The text; words are joined by spaces. A final - reads stdin, which is also read "
            "when no text is given. With --task, the file to read.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="Read the text from FILE, exactly as it is.",
            show_default=False,
        ),
    ] = None,
    preset: params.Preset = None,
    model: params.Model = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    lines: params.Lines = False,
    from_jsonl: params.FromJsonl = False,
    field: params.Field = None,
    stride: Annotated[
        int | None,
        _value(
            _TEXTS,
            "--stride",
            metavar="N",
            help="Score a text longer than a window in overlapping windows that advance by N tokens, "
            "as in the Hugging Face perplexity guide; a small N is slower, and gives each token "
            "more context. Default: half a window.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        _value(
            _TEXTS,
            "--window",
            metavar="N",
            help="The size of a window, in tokens. Default: the model's context.",
        ),
    ] = None,
    bos: params.Bos = False,
    eos: Annotated[
        bool, _flag(_TEXTS, "--eos", help="Also score the end of each text: the model's eos token after it.")
    ] = False,
    keep_newline: Annotated[
        bool | None,
        _flag(
            _TEXTS,
            "--keep-newline/--drop-newline",
            help="Whether a final newline of a file or of stdin is part of the text. Default: it is; "
            "with --choices it is dropped, as from a prompt.",
        ),
    ] = None,
    special_tokens: params.SpecialTokens = None,
    strict: params.Strict = False,
    choices: Annotated[
        str | None,
        _value(
            _CHOICES,
            "--choices",
            metavar="A,B,…",
            help="Rank these continuations of the text. Each is taken exactly as it stands between "
            "the commas: mind the space before a word.",
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        _value(
            _CHOICES, "--choice", metavar="TEXT", help="A continuation to rank; may be given several times."
        ),
    ] = None,
    normalize: Annotated[
        Normalize | None,
        _value(
            _CHOICES,
            "--normalize",
            help="Rank by log-probability as it is (none), per token, or per byte. Default: none.",
        ),
    ] = None,
    task: Annotated[
        ScoreTask | None,
        _value(
            _CHOICES,
            "--task",
            help="lambada: accuracy and perplexity on the last word. cloze: which of the choices "
            "fills the gap ___, by its probability and that of what follows. winograd: the same, by what "
            "follows alone.",
        ),
    ] = None,
    limit: Annotated[
        int | None, _value(_CHOICES, "--limit", metavar="N", help="Use only the first N records of a task.")
    ] = None,
    tokens: Annotated[
        bool, _flag(_SHOWN, "--tokens", help="Show each token with its probability, rank and entropy.")
    ] = False,
    top: Annotated[
        int | None,
        _value(_SHOWN, "--top", metavar="K", help="Show the K most likely tokens beside each token."),
    ] = None,
    plot: Annotated[
        Path | None,
        _value(
            _SHOWN,
            "--plot",
            metavar="FILE",
            help="Plot surprisal, and probability by position, in an .svg or .png file.",
        ),
    ] = None,
    json: params.Json = False,
    jsonl: Annotated[
        bool, _flag(_SHOWN, "--jsonl", help="Print JSON events, one per line: token, text, choices, summary.")
    ] = False,
    output: Annotated[
        Path | None,
        _value(
            _SHOWN,
            "--output",
            "-o",
            metavar="FILE",
            help="Write to FILE, completely or not at all; the suffixes .json and .jsonl mean --json "
            "and --jsonl. - is stdout.",
        ),
    ] = None,
    no_resume: params.NoResume = False,
    shard: params.ShardPart = None,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    batch_tokens: params.BatchTokens = None,
    debug: params.Debug = False,
) -> None:
    """Score texts: nll, perplexity, bits per byte, token by token; rank continuations; run tasks."""
    flags = read_flags(ScoreFlags, ctx.params)
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, flags.quiet)
    flags, _ = use_preset(terminal, flags, command="score")
    if flags.task is not None:
        flags = flags.with_task_file()
    options = read_options(terminal, flags)
    with open_source(terminal, flags, lines=flags.many) as source:
        _run(Job(terminal, settings, flags, options, source))


def _run(job: Job) -> None:
    """Load the model and do what is asked."""
    found = model_to_measure(job.terminal, job.settings, job.flags)
    windows = _windows(job, found)
    engine = load_engine(job.terminal, found, to_look_inside=True)
    if job.options.bos and engine.config.bos_token_id is None:
        raise UsageError("--bos: the model has no bos token")
    if job.options.eos and not engine.config.eos_token_ids:
        raise UsageError("--eos: the model has no eos token")
    _dispatch(job, found, engine, windows)


def _windows(job: Job, found: FoundModel) -> WindowOptions:
    from gpt2cli.analysis.windows import WindowOptions

    return WindowOptions.of(found.checkpoint.config.n_positions, job.options.window, job.options.stride)


def _dispatch(job: Job, found: FoundModel, engine: Engine, windows: WindowOptions) -> None:
    with job.terminal.signals.deferred():
        from gpt2cli.cli.score_ranks import run_choices, run_task
        from gpt2cli.cli.score_texts import run_texts
    if job.options.task is not None:
        run_task(job, found, engine)
    elif job.options.choices:
        run_choices(job, found, engine)
    else:
        run_texts(job, found, engine, windows)
