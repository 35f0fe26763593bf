"""``gpt2cli compare``: models, prompts, seeds and settings side by side."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli.analysis.templates import expand_template
from gpt2cli.cli import params
from gpt2cli.cli.formats import Output, read_output
from gpt2cli.cli.loading import FoundModel, find_model, load_engine, start, tokenizer_of
from gpt2cli.cli.prompt import read_prompt
from gpt2cli.errors import PromptTooLong, UsageError
from gpt2cli.options import MAX_SEED, GenerateOptions, SamplingOptions, check_whole
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

MAX_RUNS = 10_000
MAX_WORDS = 100
DEFAULT_WORDS = 10

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
            help="A prompt; words are joined by a space. A last - reads stdin, which is also read when there "
            "is no prompt.",
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
            help='Prompts from a template: "The {White|Black} man" is two. Also shows the likeliest next '
            "words. May be given several times.",
            show_default=False,
        ),
    ] = None,
    next_words: Annotated[
        int | None,
        typer.Option(
            "--next",
            metavar="K",
            help=f"Show the K likeliest next words of each prompt; 0 is none. Default: {DEFAULT_WORDS} with "
            "--vary.",
            show_default=False,
        ),
    ] = None,
    given_words: Annotated[
        str | None,
        typer.Option(
            "--words",
            metavar="A,B,…",
            help="Show the probability of these next words instead.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|DIR",
            help="A model directory, or a name; may be given several times. Default: the setting model, else "
            "the built-in model.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: params.MaxNewTokens = None,
    stop: params.Stop = None,
    ignore_eos: params.IgnoreEos = None,
    temperature: Annotated[list[float] | None, _several("--temperature", "T", "0 is greedy.")] = None,
    top_k: Annotated[list[int] | None, _several("--top-k", "K", "0 is off.")] = None,
    top_p: Annotated[list[float] | None, _several("--top-p", "P", "1 is off.")] = None,
    min_p: Annotated[list[float] | None, _several("--min-p", "P", "0 is off.")] = None,
    typical_p: Annotated[list[float] | None, _several("--typical-p", "P", "1 is off.")] = None,
    repetition_penalty: Annotated[
        list[float] | None, _several("--repetition-penalty", "X", "1 is off.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        list[int] | None, _several("--no-repeat-ngram-size", "N", "0 is off.")
    ] = None,
    seed: Annotated[
        list[int] | None, _several("--seed", "S", "The same seeds for all. Default: one is drawn.")
    ] = None,
    greedy: params.Greedy = None,
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
    debug: params.Debug = False,
) -> None:
    """Run models, prompts, seeds and settings side by side, and say where the texts part."""
    _run(_read_request(ctx.obj, ctx.params))


@dataclass(frozen=True, slots=True)
class Variation:
    """A template: its text, and which of all prompts are its own, with what varies in each."""

    template: str
    prompts: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A command line that was found to be in order; nothing is loaded yet."""

    terminal: Terminal
    output: Output
    models: tuple[FoundModel, ...]
    prompts: tuple[str, ...]
    variations: tuple[Variation, ...]
    settings: tuple[dict[str, Any], ...]
    varied: tuple[str, ...]
    """The sampling options that have several values."""
    seeds: tuple[int, ...]
    next_words: int
    given_words: tuple[str, ...]


def _read_request(terminal: Terminal, flags: Mapping[str, Any]) -> Request:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    settings = start(terminal, flags)
    output = read_output(terminal, flags)
    combinations, varied = _combinations(settings, flags)
    seeds = _seeds(flags["seed"])
    for given in combinations:
        GenerateOptions(**given, seed=seeds[0])
    given_words = _given_words(flags["given_words"])
    prompts, variations = _prompts(terminal, flags)
    names = list(dict.fromkeys(flags["models"] or [None]))
    runs = len(names) * len(prompts) * len(combinations) * len(seeds)
    if runs > MAX_RUNS:
        raise UsageError(f"{runs} texts are more than {MAX_RUNS}", hint="give fewer of what is combined")
    found = tuple(
        find_model(terminal, settings, {**flags, "model": name, "revision": None}) for name in names
    )
    return Request(
        terminal=terminal,
        output=output,
        models=found,
        prompts=prompts,
        variations=variations,
        settings=combinations,
        varied=varied,
        seeds=seeds,
        next_words=_number_of_words(flags),
        given_words=given_words,
    )


def _combinations(
    settings: Settings, flags: Mapping[str, Any]
) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Every combination of the sampling options, each as what is given of `GenerateOptions`; and the names of
    those with several values.
    """
    names = [field.name for field in fields(SamplingOptions)]
    if flags["greedy"] and flags["temperature"]:
        raise UsageError("--greedy and --temperature do not go together")
    lists = {name: list(dict.fromkeys(flags[name])) for name in names if flags[name]}
    if flags["greedy"]:
        lists["temperature"] = [0.0]
    fixed = settings.over({name: None for name in names if name not in lists})
    fixed |= settings.over({"max_new_tokens": flags["max_new_tokens"]})
    fixed |= {name: True for name in ("ignore_eos", "special_tokens") if flags[name]}
    if flags["stop"]:
        fixed["stop"] = tuple(flags["stop"])
    values = itertools.product(*lists.values())
    combinations = tuple({**fixed, **dict(zip(lists, chosen, strict=True))} for chosen in values)
    return combinations, tuple(name for name, several in lists.items() if len(several) > 1)


def _seeds(given: list[int] | None) -> tuple[int, ...]:
    """The seeds, each once; one is drawn where none is given. Raises `InvalidOption`."""
    for seed in given or ():
        check_whole("seed", seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
    return tuple(dict.fromkeys(given)) if given else (secrets.randbelow(MAX_SEED + 1),)


def _given_words(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not 1 <= len(words) <= MAX_WORDS:
        raise UsageError(f"--words takes 1 to {MAX_WORDS} words with a comma between them")
    return words


def _number_of_words(flags: Mapping[str, Any]) -> int:
    number: int | None = flags["next_words"]
    if number is not None:
        if flags["given_words"] is not None:
            raise UsageError("--next and --words do not go together")
        check_whole("next", number, 0, MAX_WORDS, f"0 to {MAX_WORDS}")
        return number
    return DEFAULT_WORDS if flags["vary"] and flags["given_words"] is None else 0


def _prompts(terminal: Terminal, flags: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Variation, ...]]:
    """All prompts, those of templates last. Raises `UsageError`."""
    words, several, file = list(flags["words"] or ()), flags["prompts"] or [], flags["file"]
    from_stdin = words[-1:] == ["-"] or (file is not None and str(file) == "-")
    if flags["lines"] and (several or (words and words != ["-"])):
        raise UsageError("--lines is for --file or stdin")
    found: list[str] = []
    for text in several:
        found.append(read_prompt(terminal, (), text, None, strict=flags["strict"]))
    if words or file is not None or from_stdin or not (several or flags["vary"]):
        text = read_prompt(terminal, words, None, file, strict=flags["strict"])
        found += (
            [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
            if flags["lines"]
            else [text]
        )
    if flags["lines"] and not found:
        raise UsageError("there is no line with a prompt")
    variations = []
    for raw in flags["vary"] or ():
        template = read_prompt(terminal, (), raw, None, strict=flags["strict"])
        variants = expand_template(template)
        places = range(len(found), len(found) + len(variants))
        labels = tuple(" · ".join(choice or "(nothing)" for choice in v.chosen) for v in variants)
        variations.append(Variation(template, tuple(places), labels))
        found += [variant.text for variant in variants]
    return tuple(found), tuple(variations)


def _run(request: Request) -> None:
    """Load all models, run everything, and report."""
    terminal = request.terminal
    engines = [load_engine(terminal, found) for found in request.models]
    for engine in engines:
        tokenizer_of(engine)
    from gpt2cli.cli.compare_report import Comparison

    comparison = Comparison(request, engines)
    try:
        if request.output.format == "jsonl" and request.output.file is None:
            for line in comparison.events():
                terminal.write(line)
        else:
            request.output.write(comparison.render())
    except PromptTooLong as error:
        # Cutting prompts would compare other texts than were given: there is no --overflow here.
        error.hint = "shorten the prompt"
        raise
    if request.output.format in ("text", "svg", "html", "csv"):
        terminal.note(comparison.summary_line())
