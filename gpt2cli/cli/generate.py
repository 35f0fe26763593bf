"""``gpt2cli generate``: continue a text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params
from gpt2cli.cli.clock import process_age
from gpt2cli.cli.flags import (
    SAMPLING_NAMES,
    LengthFlags,
    ModelFlags,
    PromptFlags,
    SamplingFlags,
    ServerFlags,
    given_options,
    load_options,
    output_file,
    read_flags,
    read_settings,
)
from gpt2cli.cli.loading import (
    FoundModel,
    check_model,
    find_draft_model,
    import_engine,
    load_engine,
    resolve_model,
)
from gpt2cli.cli.prompt import read_prompt
from gpt2cli.cli.remote import Place, check_local_flags, find_place, without_local_settings
from gpt2cli.cli.run_log import RunKeeper, open_keeper
from gpt2cli.cli.sinks import OutputOptions, Run, make_sink
from gpt2cli.errors import UsageError
from gpt2cli.options import GenerateOptions, Overflow, Rng, shown
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import Sanitizer

if TYPE_CHECKING:
    from gpt2cli.cli.going_on import LastRun
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Choice, Chunk, Stats

EXAMPLES = """Examples:

  gpt2cli generate "The future of AI is"

  gpt2cli generate -m gpt2 --greedy --max-new-tokens 20 "Once upon a time"

  gpt2cli generate -n 3 --seed 7 --temperature 0.8 "My favourite book"

  cat notes.txt | gpt2cli generate --overflow truncate --stop . -

  gpt2cli generate -m http://127.0.0.1:8000/v1#gpt2 "Once upon a time"

  echo "Dear Sir," | gpt2cli generate --json | jq -r ".choices[0].text"
"""


def generate(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="The prompt; words are joined by spaces. A final - reads stdin, which is also read "
            "when no prompt is given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from FILE.", show_default=False),
    ] = None,
    go_on: params.GoOn = False,
    model: params.RemoteModel = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: params.MaxNewTokens = None,
    max_length: params.MaxLength = None,
    stop: params.Stop = None,
    ignore_eos: params.IgnoreEos = None,
    overflow: params.OverflowMode = None,
    temperature: params.Temperature = None,
    top_k: params.TopK = None,
    top_p: params.TopP = None,
    min_p: params.MinP = None,
    typical_p: params.TypicalP = None,
    repetition_penalty: params.RepetitionPenalty = None,
    no_repeat_ngram_size: params.NoRepeatNgramSize = None,
    presence_penalty: params.PresencePenalty = None,
    frequency_penalty: params.FrequencyPenalty = None,
    logit_bias: params.LogitBias = None,
    greedy: params.Greedy = None,
    num_return_sequences: params.NumReturnSequences = None,
    seed: params.Seed = None,
    rng: params.RngKind = None,
    special_tokens: params.SpecialTokens = None,
    strict: params.Strict = False,
    sanitize: params.Sanitize = False,
    json: params.Json = False,
    jsonl: params.Jsonl = False,
    echo: params.Echo = False,
    logprobs: params.Logprobs = None,
    output: params.OutputFile = None,
    record: params.RecordFile = None,
    no_stream: params.NoStream = False,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    draft: params.Draft = None,
    endpoint: params.Endpoint = None,
    api_key_file: params.ApiKeyFile = None,
    timeout: params.Timeout = None,
    debug: params.Debug = False,
) -> None:
    """Continue a text: print the model's continuation of a prompt, as it is generated."""
    terminal: Terminal = ctx.obj
    flags = read_flags(GenerateFlags, ctx.params)
    settings = read_settings(terminal, flags.quiet)
    before = None
    if flags.go_on:
        from gpt2cli.cli.going_on import last_run

        before = last_run(settings)
        flags = before.with_model(flags)
    place = find_place(terminal, settings, flags.model, flags)
    if place is not None:
        _run_remotely(terminal, settings, flags, place, before)
    else:
        run(_read_request(terminal, settings, flags, before))


def _run_remotely(
    terminal: Terminal, settings: Settings, flags: GenerateFlags, place: Place, before: LastRun | None
) -> None:
    """Check the command line, and have a server continue the prompt. Raises `Gpt2cliError`."""
    with terminal.signals.deferred():
        from gpt2cli.cli.generate_remotely import run

    check_local_flags(flags)
    output = output_options(terminal, flags)
    if flags.record is not None:
        raise UsageError("--record is for a model on this machine", hint="a server's text cannot be replayed")
    given = given_of(without_local_settings(terminal, settings), flags)
    if before is not None:
        given = before.under(given, remote=True)
    GenerateOptions(**given)
    prompt = read_prompt(terminal, flags) if before is None else before.prompt(terminal, flags)
    run(terminal, place, prompt, given, output, open_keeper(terminal, settings))


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(ModelFlags, PromptFlags, SamplingFlags, LengthFlags, ServerFlags):
    """The flags of `generate`."""

    max_length: int | None
    overflow: Overflow | None
    num_return_sequences: int | None
    seed: int | None
    rng: Rng | None
    special_tokens: bool | None
    sanitize: bool
    json: bool
    jsonl: bool
    echo: bool
    logprobs: int | None
    draft: str | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: list[str] | None
    output: Path | None
    record: Path | None
    go_on: bool
    no_stream: bool
    quiet: bool | None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A command line that was found to be in order, the model's files included; nothing is loaded yet."""

    terminal: Terminal
    model: FoundModel
    draft: FoundModel | None
    prompt: str
    options: GenerateOptions
    output: OutputOptions
    keeper: RunKeeper
    prompt_ids: tuple[int, ...] | None = None
    """What the model is given instead of the prompt's own tokens."""
    limits: Mapping[int, int] = field(default_factory=dict)
    """The tokens after which a text ends as if it was interrupted there, by its number."""


def _read_request(
    terminal: Terminal, settings: Settings, flags: GenerateFlags, before: LastRun | None
) -> GenerateRequest:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    output = output_options(terminal, flags)
    keeper = open_keeper(terminal, settings, flags.record)
    given = given_of(settings, flags) if before is None else before.under(given_of(Settings({}), flags))
    GenerateOptions(**given)
    load = load_options(settings, flags)
    prompt = read_prompt(terminal, flags) if before is None else before.prompt(terminal, flags)
    model = check_model(resolve_model(terminal, settings, flags, load), load)
    options = model.checkpoint.generate_options(given).settled()
    if options.rng == "transformers" and load.precision == "auto":
        # The text is to be what transformers prints.
        model = replace(model, load=replace(model.load, precision="fp32"))
    # Joint draws have no use for one.
    name = "off" if options.rng == "transformers" else options.draft
    draft = find_draft_model(terminal, settings, flags, name, model.load)
    return GenerateRequest(terminal, model, draft, prompt, options, output, keeper)


def output_options(terminal: Terminal, flags: GenerateFlags) -> OutputOptions:
    if flags.logprobs is not None and not (flags.json or flags.jsonl):
        raise UsageError("--logprobs needs --json or --jsonl")
    return OutputOptions(
        json=flags.json,
        jsonl=flags.jsonl,
        echo=flags.echo,
        stream=not flags.no_stream,
        sanitize=flags.sanitize,
        file=output_file(terminal, flags.output),
    )


def given_of(settings: Settings, flags: GenerateFlags) -> dict[str, Any]:
    """What the flags and the settings say of `GenerateOptions`; the rest is left to the model."""
    others = [option.name for option in fields(GenerateOptions) if option.name not in SAMPLING_NAMES]
    given = given_options(settings, flags, *others)
    given["logit_bias"] = read_bias(flags.logit_bias or [])
    if flags.max_length is not None and flags.max_new_tokens is None:
        # A setting does not get in a flag's way.
        given.pop("max_new_tokens", None)
    return given


def read_bias(given: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """What ``--logit-bias`` says of each token. Raises `UsageError`."""
    pairs = []
    for text in given:
        token, _, bias = text.partition("=")
        try:
            pairs.append((int(token), float(bias)))
        except ValueError:
            raise UsageError(
                f"--logit-bias: {shown(text)} is not ID=X", hint="--logit-bias 50256=-100 keeps a token out"
            ) from None
    return tuple(pairs)


def run(request: GenerateRequest) -> None:
    """Load the model, pass its chunks on, and report. Raises what a signal asked for, at the end."""
    terminal, options = request.terminal, request.options
    started = time.perf_counter()
    import_engine(terminal)
    from gpt2cli.core.results import new_choices

    import_s = time.perf_counter() - started
    engine = load_engine(terminal, request.model)
    if request.draft is not None:
        small = load_engine(terminal, request.draft)
        engine.draft_with(small)
        engine.load_s += small.load_s
    age = process_age()
    chunks = chunks_of(request, engine)
    # From here on there is something to end properly.
    terminal.signals.soften(engine.interrupt)
    document = Run(request.model.head(), request.prompt, options, asdict(engine.info))
    sink = make_sink(terminal, document, request.output, engine.tokenizer)
    choices, drawn = new_choices(options), new_choices(options)
    cleaners = [Sanitizer() if request.output.sanitize else None for _ in choices]
    stats, tail = None, None
    try:
        for chunk in chunks:
            drawn[chunk.sequence].add(chunk)
            if (cleaner := cleaners[chunk.sequence]) is not None:
                chunk = replace(chunk, text=cleaner.push(chunk.text))
            choices[chunk.sequence].add(chunk)
            sink.chunk(chunk)
            stats = chunk.stats
        assert stats is not None
        # A first signal that comes only now must not tear what is being written.
        terminal.signals.soften(lambda: None)
        tail = _tail(engine, stats, import_s, age)
        sink.finish(choices, tail)
        _report(request, choices, stats)
    finally:
        _keep(request, engine, drawn, chunks, stats, tail["timings"] if tail else None)
    if terminal.signals.received is not None:
        raise terminal.signals.received


def chunks_of(request: GenerateRequest, engine: Engine) -> Iterator[Chunk]:
    """What the engine draws. Raises what `Engine.stream` raises."""
    prompt = request.prompt if request.prompt_ids is None else request.prompt_ids
    chunks = engine.stream(prompt, request.options)
    if not request.limits:
        return chunks
    from gpt2cli.runs.cut import cut

    return cut(chunks, request.limits, engine, request.options)


def _keep(
    request: GenerateRequest,
    engine: Engine,
    drawn: Sequence[Choice],
    chunks: Iterator[Chunk],
    stats: Stats | None,
    timings: Mapping[str, Any] | None,
) -> None:
    """Keep the run where runs are kept, also one whose reader has left."""
    keeper = request.keeper
    if not keeper.on:
        return
    if stats is None:
        engine.interrupt()
        for chunk in chunks:
            drawn[chunk.sequence].add(chunk)
            stats = chunk.stats
    keeper.met(request.model.resolved)
    keeper.keep("generate", engine, request.prompt, request.options, drawn, stats, timings=timings)
    keeper.close()


def _tail(engine: Engine, stats: Stats, import_s: float, age: float) -> dict[str, Any]:
    """The last fields of the document, and the ``summary`` event. ``age`` is the process's at the prompt."""
    return {
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "dropped_tokens": stats.dropped_tokens,
        },
        "speculation": {"steps": stats.steps, "drafted": stats.drafted, "accepted": stats.accepted},
        "timings": {
            "import_s": round(import_s, 4),
            "load_s": round(engine.load_s, 4),
            "prefill_s": round(stats.prefill_s, 4),
            "first_token_s": round(age + stats.first_token_s, 4),
            "decode_s": round(stats.decode_s, 4),
            "tokens_per_s": None if stats.tokens_per_s is None else round(stats.tokens_per_s, 2),
        },
        "engine": asdict(engine.info),
    }


def _report(request: GenerateRequest, choices: Sequence[Choice], stats: Stats) -> None:
    """Say on stderr what the text does not show: dropped tokens, a full context, the seed."""
    terminal, options = request.terminal, request.options
    context = request.model.checkpoint.config.n_positions
    if stats.dropped_tokens:
        terminal.warn(f"{stats.dropped_tokens} tokens were dropped to fit the context of {context}")
    if any(choice.finish_reason == "context" for choice in choices):
        terminal.warn(f"the text ends where the context of {context} tokens does (--overflow slide goes on)")
    if request.output.json or request.output.jsonl:
        return
    parts = [] if options.greedy else [f"seed {options.seed}"]
    if terminal.stderr_is_terminal:
        parts.append(f"{stats.completion_tokens} tokens")
        if stats.tokens_per_s is not None:
            parts.append(f"{stats.tokens_per_s:.1f} tokens/s")
        parts.append(", ".join(dict.fromkeys(str(choice.finish_reason) for choice in choices)))
    if parts:
        terminal.note(" · ".join(parts))
