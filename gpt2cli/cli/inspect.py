"""``gpt2cli inspect``: what the model thought of each token of a text, and how the next one is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.flags import (
    SAMPLING_NAMES,
    ModelFlags,
    PromptFlags,
    SamplingFlags,
    given_options,
    read_flags,
    read_settings,
)
from gpt2cli.cli.formats import Output, OutputFlags, read_output
from gpt2cli.cli.loading import FoundModel, encode_text, load_engine, model_to_measure, tokenizer_of
from gpt2cli.cli.prompt import read_prompt
from gpt2cli.errors import InvalidOption, UsageError
from gpt2cli.options import GenerateOptions, check_whole
from gpt2cli.terminal.streams import Terminal

MAX_TOP = 1000
MAX_TOKENS = 100_000
"""The longest text that is shown; `score` takes any length."""

EXAMPLES = """Examples:

  gpt2cli inspect "Once upon a time there was a little girl"

  gpt2cli inspect --by entropy --top 5 -f letter.txt

  gpt2cli inspect -o page.html --top 5 "The cat sat on the mat"

  gpt2cli inspect --explain --temperature 0.7 --top-k 40 --top-p 0.9 "Once upon a"

  gpt2cli inspect --csv -f letter.txt | cut -d , -f 1,3,5
"""


def inspect(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="The text; words are joined by spaces. A final - reads stdin, which is also read "
            "when no text is given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the text from FILE.", show_default=False),
    ] = None,
    by: Annotated[
        Literal["probability", "rank", "entropy"],
        typer.Option("--by", help="What the colour, or the digit under the text, stands for."),
    ] = "probability",
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="K",
            help="List the tokens, each with the K most likely ones in its place.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            help="Read a text longer than the context in overlapping windows that advance by N tokens.",
            show_default=False,
        ),
    ] = None,
    marks: Annotated[
        bool | None,
        typer.Option(
            "--marks/--no-marks",
            metavar="",
            help="Print digits under the text. Default: in an SVG, and where there are no colours.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            metavar="",
            help="Instead, show what each sampling option removes at one step, and what is left.",
        ),
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            metavar="PLACE",
            help="With --explain: look at the step that draws token PLACE of the text; -1 is the "
            "last. Default: the token after the text.",
            show_default=False,
        ),
    ] = None,
    model: params.Model = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    temperature: sampling_params.Temperature = None,
    top_k: sampling_params.TopK = None,
    top_p: sampling_params.TopP = None,
    min_p: sampling_params.MinP = None,
    typical_p: sampling_params.TypicalP = None,
    repetition_penalty: sampling_params.RepetitionPenalty = None,
    no_repeat_ngram_size: sampling_params.NoRepeatNgramSize = None,
    greedy: sampling_params.Greedy = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            help="With --explain: show which token this seed draws.",
            rich_help_panel="Sampling",
            show_default=False,
        ),
    ] = None,
    bos: params.Bos = False,
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
    """Colour a text by how well the model predicted it; with --explain, show how its next token is drawn."""
    request = _read_request(ctx.obj, read_flags(InspectFlags, ctx.params))
    if request.sampling is None:
        _inspect(request)
    else:
        _explain(request, request.sampling)


@dataclass(frozen=True, kw_only=True)
class InspectFlags(ModelFlags, PromptFlags, SamplingFlags, OutputFlags):
    """The flags of `inspect`."""

    by: Literal["probability", "rank", "entropy"]
    top: int | None
    stride: int | None
    marks: bool | None
    explain: bool
    at: int | None
    seed: int | None
    bos: bool
    special_tokens: bool | None
    quiet: bool | None


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """A command line that was found to be in order. ``sampling`` is None without ``--explain``."""

    terminal: Terminal
    output: Output
    model: FoundModel
    text: str
    special_tokens: bool
    by: Literal["probability", "rank", "entropy"]
    top: int | None
    stride: int | None
    bos: bool
    marks: bool | None
    sampling: GenerateOptions | None
    at: int | None


def _read_request(terminal: Terminal, flags: InspectFlags) -> InspectRequest:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    settings = read_settings(terminal, flags.quiet)
    output = read_output(terminal, flags)
    if flags.top is not None:
        check_whole("top", flags.top, 1, MAX_TOP, f"1 to {MAX_TOP}")
    _check_explain(flags)
    given = given_options(settings, flags, "seed")
    GenerateOptions(**given)
    text = read_prompt(terminal, flags)
    model = model_to_measure(terminal, settings, flags)
    return InspectRequest(
        terminal=terminal,
        output=output,
        model=model,
        text=text,
        special_tokens=bool(flags.special_tokens),
        by=flags.by,
        top=flags.top,
        stride=flags.stride,
        bos=flags.bos,
        marks=flags.marks,
        sampling=model.checkpoint.generate_options(given) if flags.explain else None,
        at=flags.at,
    )


def _check_explain(flags: InspectFlags) -> None:
    """Raise `UsageError` for flags that need ``--explain``, and for those that do not go with it."""
    used = [name for name in (*SAMPLING_NAMES, "greedy", "seed", "at") if getattr(flags, name) is not None]
    if used and not flags.explain:
        raise UsageError(f"--{used[0].replace('_', '-')} needs --explain")
    if flags.explain:
        unused = [name for name in ("marks", "stride") if getattr(flags, name) is not None]
        unused += ["by"] if flags.by != "probability" else []
        unused += ["bos"] if flags.bos else []
        if unused:
            raise UsageError(f"--{unused[0]} does not go with --explain, which shows one step")


def _inspect(request: InspectRequest) -> None:
    engine = load_engine(request.terminal, request.model, to_look_inside=True)
    tokenizer_of(engine)
    from gpt2cli.cli.inspect_report import TextReport

    ids = encode_text(engine, request.text, bos=request.bos, special_tokens=request.special_tokens)
    if len(ids) > MAX_TOKENS:
        raise UsageError(
            f"the text has {len(ids)} tokens; inspect shows at most {MAX_TOKENS}",
            hint="gpt2cli score --tokens takes a text of any length",
        )
    report = TextReport.of(
        engine, ids, request.model.head(), by=request.by, top=request.top or 0, stride=request.stride
    )
    listed = request.top is not None
    request.output.write(report.render(request.output, marks=request.marks, listed=listed))
    if request.output.format in ("text", "svg", "html", "csv"):
        request.terminal.note(report.summary_line())


def _explain(request: InspectRequest, sampling: GenerateOptions) -> None:
    engine = load_engine(request.terminal, request.model, to_look_inside=True)
    tokenizer_of(engine)
    from gpt2cli.cli.explain_report import StepReport

    ids = encode_text(engine, request.text, bos=request.bos, special_tokens=request.special_tokens)
    before = _step(request.at, len(ids))
    report = StepReport.of(engine, ids, before, sampling, request.model.head(), top=request.top or 10)
    request.output.write(report.render(request.output))


def _step(at: int | None, tokens: int) -> int:
    """How many tokens stand before the step. Raises `InvalidOption`."""
    if at is None:
        return tokens
    before = at - 1 if at > 0 else tokens + at
    if at == 0 or not 1 <= before <= tokens:
        raise InvalidOption(
            "at",
            f"{at} is not allowed; the text has {tokens} tokens, and the first is not drawn",
            hint=f"2 to {tokens + 1}, or -1 to -{tokens - 1}" if tokens > 1 else "leave --at out",
        )
    return before
