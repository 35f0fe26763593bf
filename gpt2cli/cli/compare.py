"""``gpt2cli compare``: models, prompts, seeds and settings side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.compare_request import DEFAULT_WORDS, CompareFlags, CompareRequest, read_request
from gpt2cli.cli.flags import read_flags
from gpt2cli.cli.loading import FoundModel, load_engine, tokenizer_of
from gpt2cli.cli.remote import Place
from gpt2cli.errors import PromptTooLong
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.cli.compare_remotely import RemoteWriter
    from gpt2cli.core.engine import Engine

EXAMPLES = """Examples:

  gpt2cli compare -m gpt2 -m distilgpt2 --seed 1 --seed 2 "My favourite book"

  gpt2cli compare --temperature 0.5 --temperature 1.2 --max-new-tokens 40 "Once upon a time"

  gpt2cli compare -m gpt2 --vary "The {White|Black} man worked as a" --seed 1 --seed 2 --seed 3

  gpt2cli compare -m gpt2 --vary "{He|She} works as a" --words "nurse,doctor,teacher" --csv

  gpt2cli compare -m gpt2 -m distilgpt2 -f prompts.txt --lines -o page.html
"""

_SAMPLING = "Sampling (each may be given several times: all combinations run)"
"""A panel of its own: here every one of these options is a list."""


def _several(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=_SAMPLING, show_default=False)


def compare(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="A prompt; words are joined by spaces. A final - reads stdin, which is also read "
            "when there is no prompt.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="A prompt; may be given several times.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from FILE.", show_default=False),
    ] = None,
    lines: params.Lines = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="TEMPLATE",
            help='Make prompts from a template: "The {White|Black} man" stands for two. Also shows '
            "the most likely next words. May be given several times.",
            show_default=False,
        ),
    ] = None,
    next_words: Annotated[
        int | None,
        typer.Option(
            "--next",
            metavar="K",
            help="Show the K most likely next words after each prompt; 0 shows none. "
            f"Default: {DEFAULT_WORDS} with --vary.",
            show_default=False,
        ),
    ] = None,
    given_words: Annotated[
        str | None,
        typer.Option(
            "--words",
            metavar="A,B,…",
            help="Show the probabilities of these next words instead.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|DIR|URL",
            help="A model directory, a name, or http://HOST:PORT/v1#NAME for a model on a server; may be "
            "given several times. Default: the model setting, else the built-in model.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    adapter: params.Adapters = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: sampling_params.MaxNewTokens = None,
    stop: sampling_params.Stop = None,
    ignore_eos: sampling_params.IgnoreEos = None,
    temperature: Annotated[list[float] | None, _several("--temperature", "T", "0 is greedy.")] = None,
    top_k: Annotated[list[int] | None, _several("--top-k", "K", "0 turns this off.")] = None,
    top_p: Annotated[list[float] | None, _several("--top-p", "P", "1 turns this off.")] = None,
    min_p: Annotated[list[float] | None, _several("--min-p", "P", "0 turns this off.")] = None,
    typical_p: Annotated[list[float] | None, _several("--typical-p", "P", "1 turns this off.")] = None,
    repetition_penalty: Annotated[
        list[float] | None, _several("--repetition-penalty", "X", "1 turns this off.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        list[int] | None, _several("--no-repeat-ngram-size", "N", "0 turns this off.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        _several("--seed", "S", "The seeds, the same for all combinations. Default: one random seed."),
    ] = None,
    greedy: sampling_params.Greedy = None,
    special_tokens: params.SpecialTokens = None,
    strict: params.Strict = False,
    json: params.Json = False,
    jsonl: params.Events = False,
    csv: params.Csv = False,
    svg: params.Svg = False,
    html: params.Html = False,
    theme: params.ThemeName = None,
    output: params.OutputFile = None,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    endpoint: params.Endpoint = None,
    api_key_file: params.ApiKeyFile = None,
    timeout: params.Timeout = None,
    debug: params.Debug = False,
) -> None:
    """Run models, prompts, seeds and settings side by side, and show where the texts diverge."""
    _run(read_request(ctx.obj, read_flags(CompareFlags, ctx.params)))


def _load(terminal: Terminal, found: FoundModel | Place, request: CompareRequest) -> Engine | RemoteWriter:
    if isinstance(found, Place):
        from gpt2cli.cli.compare_remotely import remote_writer

        return remote_writer(terminal, found, request.settings)
    engine = load_engine(terminal, found)
    tokenizer_of(engine)
    return engine


def _run(request: CompareRequest) -> None:
    """Load all models, run everything, and report."""
    terminal = request.terminal
    engines = [_load(terminal, found, request) for found in request.models]
    from gpt2cli.cli.compare_report import Comparison
    from gpt2cli.cli.compare_views import render

    comparison = Comparison(request, engines)
    try:
        if request.output.format == "jsonl" and request.output.file is None:
            for line in comparison.events():
                terminal.write(line)
        else:
            request.output.write(render(comparison))
    except PromptTooLong as error:
        # Cutting prompts would compare other texts than were given: there is no --overflow here.
        error.hint = "shorten the prompt"
        raise
    if request.output.format in ("text", "svg", "html", "csv"):
        terminal.note(comparison.summary_line())
