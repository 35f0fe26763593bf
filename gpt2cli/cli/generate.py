"""``gpt2cli generate``: continue a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.flags import (
    SAMPLING_NAMES,
    LengthFlags,
    ModelFlags,
    PromptFlags,
    SamplingFlags,
    ServerFlags,
    TemplateFlags,
    given_options,
    load_options,
    output_file,
    read_flags,
    read_settings,
)
from gpt2cli.cli.generate_local import GenerateRequest, answer, load, run
from gpt2cli.cli.loading import check_model, find_draft_model, resolve_model
from gpt2cli.cli.presets import Prompts, use_preset
from gpt2cli.cli.remote import Place, check_local_flags, find_place, without_local_settings
from gpt2cli.cli.run_log import open_keeper
from gpt2cli.cli.sinks import OutputOptions
from gpt2cli.errors import UsageError
from gpt2cli.options import GenerateOptions, Overflow, Rng, shown
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.cli.going_on import LastRun

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
    repeat: Annotated[
        bool,
        typer.Option(
            "--repeat",
            metavar="",
            help="Answer each line of stdin as it comes, with the model loaded once; a line --- follows each "
            "text. With --jsonl a line is a JSON text, or an object with a prompt and options, and each "
            "answer is an object.",
        ),
    ] = False,
    preset: params.Preset = None,
    field: params.TemplateField = None,
    field_file: params.FieldFile = None,
    go_on: params.GoOn = False,
    model: params.RemoteModel = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: sampling_params.MaxNewTokens = None,
    max_length: sampling_params.MaxLength = None,
    max_sentences: sampling_params.MaxSentences = None,
    stop: sampling_params.Stop = None,
    ignore_eos: sampling_params.IgnoreEos = None,
    overflow: sampling_params.OverflowMode = None,
    temperature: sampling_params.Temperature = None,
    top_k: sampling_params.TopK = None,
    top_p: sampling_params.TopP = None,
    min_p: sampling_params.MinP = None,
    typical_p: sampling_params.TypicalP = None,
    repetition_penalty: sampling_params.RepetitionPenalty = None,
    no_repeat_ngram_size: sampling_params.NoRepeatNgramSize = None,
    presence_penalty: sampling_params.PresencePenalty = None,
    frequency_penalty: sampling_params.FrequencyPenalty = None,
    logit_bias: sampling_params.LogitBias = None,
    greedy: sampling_params.Greedy = None,
    num_return_sequences: sampling_params.NumReturnSequences = None,
    seed: sampling_params.Seed = None,
    rng: sampling_params.RngKind = None,
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
) -> int:
    """Continue a text: print the model's continuation of a prompt, as it is generated."""
    terminal: Terminal = ctx.obj
    flags = read_flags(GenerateFlags, ctx.params)
    settings = read_settings(terminal, flags.quiet)
    before = _last_run(settings, flags) if flags.go_on else None
    if before is not None:
        flags = before.with_model(flags)
    flags, prompts = use_preset(terminal, flags, command="generate")
    place = find_place(terminal, settings, flags.model, flags)
    base = Base(settings, prompts, before)
    if flags.repeat:
        return _repeat(terminal, flags, base, remote=place is not None)
    if place is not None:
        _run_remotely(terminal, flags, base, place)
    else:
        run(_read_request(terminal, flags, base))
    return 0


def _last_run(settings: Settings, flags: GenerateFlags) -> LastRun:
    """What ``--continue`` goes on with. Raises `UsageError`."""
    from gpt2cli.cli.going_on import last_run

    if flags.preset is not None:
        raise UsageError("--continue has the options of the last run", hint="leave --preset out")
    return last_run(settings)


@dataclass(frozen=True, slots=True)
class Base:
    """What the flags stand on: the settings and a preset's prompts, or the last run."""

    settings: Settings
    prompts: Prompts
    before: LastRun | None = None

    def given(self, flags: GenerateFlags) -> dict[str, Any]:
        """What is said of the options of a local model; the rest is left to the model."""
        if self.before is None:
            return given_of(self.settings, flags)
        return self.before.under(given_of(Settings({}), flags))

    def prompt(self, terminal: Terminal, flags: GenerateFlags) -> str:
        """The text to continue. Raises `UsageError`."""
        if self.before is None:
            return self.prompts.read(terminal, flags)
        return self.before.prompt(terminal, flags)


def _run_remotely(terminal: Terminal, flags: GenerateFlags, base: Base, place: Place) -> None:
    """Check the command line, and have a server continue the prompt. Raises `Gpt2cliError`."""
    with terminal.signals.deferred():
        from gpt2cli.cli.generate_remotely import run

    check_local_flags(flags)
    output = output_options(terminal, flags)
    if flags.record is not None:
        raise UsageError("--record is for a model on this machine", hint="a server's text cannot be replayed")
    given = given_of(without_local_settings(terminal, base.settings), flags)
    if base.before is not None:
        given = base.before.under(given, remote=True)
    GenerateOptions(**given)
    keeper = open_keeper(terminal, base.settings)
    run(terminal, place, base.prompt(terminal, flags), given, output, keeper)


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(ModelFlags, PromptFlags, TemplateFlags, SamplingFlags, LengthFlags, ServerFlags):
    """The flags of `generate`."""

    repeat: bool
    max_length: int | None
    max_sentences: int | None
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


def _read_request(terminal: Terminal, flags: GenerateFlags, base: Base) -> GenerateRequest:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    settings = base.settings
    output = output_options(terminal, flags)
    keeper = open_keeper(terminal, settings, flags.record)
    given = base.given(flags)
    GenerateOptions(**given)
    how = load_options(settings, flags)
    prompt = "" if flags.repeat else base.prompt(terminal, flags)
    model = check_model(resolve_model(terminal, settings, flags, how), how)
    options = model.checkpoint.generate_options(given).settled()
    if options.rng == "transformers" and how.precision == "auto":
        # The text is to be what transformers prints.
        model = replace(model, load=replace(model.load, precision="fp32"))
    # Joint draws have no use for one.
    name = "off" if options.rng == "transformers" else options.draft
    draft = find_draft_model(terminal, settings, flags, name, model.load)
    return GenerateRequest(terminal, model, draft, prompt, options, output, keeper, given=given)


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
    others = [field.name for field in fields(GenerateOptions) if field.name not in SAMPLING_NAMES]
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


def _repeat(terminal: Terminal, flags: GenerateFlags, base: Base, *, remote: bool) -> int:
    """Load the model and answer every line of stdin; the exit code. Raises what a signal asked for."""
    from gpt2cli.cli.generate_repeat import Asked, check_flags, run_repeat

    check_flags(flags, remote=remote)
    request = _read_request(terminal, flags, base)
    engine, import_s = load(request)
    output = replace(request.output, json=flags.jsonl, jsonl=False)

    def answer_line(asked: Asked) -> None:
        given = {**request.given, **asked.options}
        for one, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
            if one in asked.options and other not in asked.options:
                given.pop(other, None)
        options = request.model.checkpoint.generate_options(given).settled()
        line = replace(request, prompt=asked.prompt, options=options, output=output)
        answer(line, engine, import_s, 0.0, asked.head())

    return run_repeat(terminal, base.prompts, answer_line, as_json=flags.jsonl, strict=flags.strict)
