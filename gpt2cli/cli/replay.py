"""``gpt2cli replay``: run again what was run before."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gpt2cli.cli import params
from gpt2cli.cli.flags import ModelFlags, load_options, output_file, read_flags, read_settings
from gpt2cli.cli.generate_local import GenerateRequest, chunks_of, run
from gpt2cli.cli.loading import FoundModel, check_model, known_hashes, load_engine, resolve_model
from gpt2cli.cli.run_log import RunKeeper, existing_log
from gpt2cli.cli.sinks import OutputOptions
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.hub.resolve import ResolvedModel, resolve, resolve_name, with_adapter
from gpt2cli.options import DRAFTS, Device, GenerateOptions, LoadOptions, Precision, shown
from gpt2cli.runs.compare import Change, Difference, changes, first_difference
from gpt2cli.runs.cut import tokens_until_interrupted
from gpt2cli.runs.hashes import Stopped, hash_of_model
from gpt2cli.runs.record import RunRecord, read_record
from gpt2cli.settings import Settings
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

EXAMPLES = """Examples:

  gpt2cli replay 12

  gpt2cli replay 12 --check

  gpt2cli generate --record run.json "Once upon a time" && gpt2cli replay run.json --check

  gpt2cli replay run.json --precision int8 --check
"""
_SHOWN_CHARACTERS = 24


def replay(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE",
            help="The number of a run in the log (gpt2cli logs), or a file that --record wrote.",
            show_default=False,
        ),
    ],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Say whether the same text came out, bit for bit, and where not, the first difference and "
            "what has changed since. The exit code is 0 or 1.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        params.option(
            params.MODEL,
            "--model",
            "-m",
            metavar="NAME|DIR",
            help="Another model: a model directory, or a name; one that is not on this disk is pulled first. "
            "Default: as in the run.",
        ),
    ] = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    sanitize: params.Sanitize = False,
    json: params.Json = False,
    jsonl: params.Jsonl = False,
    echo: params.Echo = False,
    output: params.OutputFile = None,
    no_stream: params.NoStream = False,
    quiet: params.Quiet = None,
    device: Annotated[
        Device | None,
        params.option(params.ENGINE, "--device", help="The device to run on. Default: as in the run."),
    ] = None,
    precision: Annotated[
        Precision | None,
        params.option(
            params.ENGINE, "--precision", help="The precision of the weights. Default: as in the run."
        ),
    ] = None,
    threads: params.Threads = None,
    debug: params.Debug = False,
) -> int:
    """Run a run of the log again, or the record of one that somebody else made, and print its text.

    It has the model, prompt, options, seed and precision of that run, unless flags say otherwise. The model
    of a file is looked for by its name among those on this disk; nothing is pulled.
    """
    terminal: Terminal = ctx.obj
    flags = read_flags(ReplayFlags, ctx.params)
    settings = read_settings(terminal, flags.quiet)
    return _run(terminal, settings, flags)


@dataclass(frozen=True, kw_only=True)
class ReplayFlags(ModelFlags):
    """The flags of `replay`."""

    run: str
    check: bool
    sanitize: bool
    json: bool
    jsonl: bool
    echo: bool
    output: Path | None
    no_stream: bool
    quiet: bool | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is to be run again; ``directory`` is its model's, of which only the user's own log tells."""

    record: RunRecord
    directory: str | None = None


def _run(terminal: Terminal, settings: Settings, flags: ReplayFlags) -> int:
    if flags.check and (flags.jsonl or flags.echo or flags.sanitize or flags.output is not None):
        raise UsageError("--check prints no text", hint="it goes with --json and nothing else of the output")
    output = OutputOptions(
        json=flags.json,
        jsonl=flags.jsonl,
        echo=flags.echo,
        stream=not flags.no_stream,
        sanitize=flags.sanitize,
        file=output_file(terminal, flags.output),
    )
    recorded = _recorded(flags.run)
    record = recorded.record
    if record.on_server:
        raise UsageError(
            "the model of this run is on a server, and cannot be made to give the same text",
            hint="gpt2cli generate -m URL#NAME asks it again",
        )
    model = _model(terminal, settings, flags, recorded)
    limits = tokens_until_interrupted(record.texts)
    request = GenerateRequest(
        terminal=terminal,
        model=model,
        draft=None,
        prompt=record.prompt,
        options=_options(record.options),
        output=output,
        keeper=RunKeeper(terminal, logs=False),
        prompt_ids=record.prompt_ids,
        limits=limits,
    )
    if flags.check:
        return _check(settings, request, record, as_json=flags.json)
    run(request)
    _say_changed_model(settings, request, record)
    if limits:
        terminal.note("the run was interrupted where this text ends")
    return 0


def _recorded(run: str) -> Recorded:
    """The run of that number, or of that file. Raises `Gpt2cliError`."""
    if not run.isdecimal():
        if not os.path.lexists(run):
            raise UsageError(
                f"{shown(run)} is neither the number of a run nor a file",
                hint="gpt2cli logs lists the runs; generate --record FILE writes a file",
            )
        return Recorded(read_record(Path(run)))
    log = existing_log()
    if log is None:
        raise UsageError("the log is empty", hint="gpt2cli logs on begins one; a file named so is ./" + run)
    with log:
        found = log.get(int(run[:20]))
    return Recorded(found.record, found.directory)


def _options(options: GenerateOptions) -> GenerateOptions:
    """The options of a run as far as its text depends on them; no other model is loaded for drafts."""
    draft = options.draft if options.draft in DRAFTS else "auto"
    return replace(options, draft=draft, logprobs=None)


def _model(terminal: Terminal, settings: Settings, flags: ReplayFlags, recorded: Recorded) -> FoundModel:
    """The model of the flags, else that of the run, to be loaded as it was then. Raises `Gpt2cliError`."""
    engine = recorded.record.engine
    load = load_options(settings.without(("device", "precision")), flags)
    load = replace(
        load,
        device=flags.device or ("cpu" if engine.device == "cpu" else "auto"),
        precision=flags.precision or cast(Precision, engine.precision) or "auto",
        # The library gives other last bits than torch; where there is none, torch has to do.
        backend="auto" if any("native" in kernel for kernel in engine.kernels) else "torch",
    )
    return check_model(_resolved(terminal, settings, flags, recorded, load), load)


def _resolved(
    terminal: Terminal, settings: Settings, flags: ReplayFlags, recorded: Recorded, load: LoadOptions
) -> ResolvedModel:
    if flags.model is not None:
        return resolve_model(terminal, settings, flags, load)
    if recorded.directory is not None:
        found = resolve(recorded.directory)
    else:
        named = recorded.record.model
        found = resolve_name(named.name, revision=flags.revision or named.revision)
    return found if flags.adapter is None else with_adapter(found, flags.adapter)


def _hash(settings: Settings, request: GenerateRequest) -> str | None:
    """The hash of the model that ran; None where it cannot be told."""
    signals, model = request.terminal.signals, request.model.resolved

    def stop() -> bool:
        return signals.received is not None

    try:
        log = existing_log() if settings.value("log") else None
        if log is None:
            return hash_of_model(model.directory, known_hashes(model), adapter=model.adapter, stop=stop)
        with log:
            return hash_of_model(model.directory, known_hashes(model), log, adapter=model.adapter, stop=stop)
    except (Stopped, OSError, Gpt2cliError):
        return None


def _say_changed_model(settings: Settings, request: GenerateRequest, record: RunRecord) -> None:
    then, now = record.model.sha256, _hash(settings, request)
    if then and now and then != now:
        request.terminal.warn(
            f"{request.model.name} is not the model of the run: its hash is {now[:12]}, and was {then[:12]}"
        )


def _check(settings: Settings, request: GenerateRequest, record: RunRecord, *, as_json: bool) -> int:
    """Draw the texts again, and say whether they are the same; the exit code."""
    terminal, options = request.terminal, request.options
    engine = load_engine(terminal, request.model)
    from gpt2cli.cli.run_record import local_record
    from gpt2cli.core.results import new_choices

    chunks = chunks_of(request, engine)
    terminal.signals.soften(engine.interrupt)
    choices = new_choices(options)
    for chunk in chunks:
        choices[chunk.sequence].add(chunk)
    if terminal.signals.received is not None:
        raise terminal.signals.received
    terminal.signals.soften(None)
    now = local_record(record.command, engine, request.model.resolved, record.prompt, options, choices, None)
    now = replace(now, model=replace(now.model, sha256=_hash(settings, request)))
    difference, changed = first_difference(record.texts, now.texts), changes(record, now)

    def token(token_id: int | None) -> str | None:
        return None if token_id is None or engine.tokenizer is None else engine.tokenizer.decode([token_id])

    if as_json:
        terminal.write(json_line(_document(difference, changed, token)))
    else:
        terminal.write("".join(f"{one_line(line)}\n" for line in _lines(record, difference, changed, token)))
    return 0 if difference is None else 1


def _document(difference: Difference | None, changed: list[Change], token: Any) -> dict[str, Any]:
    """The outcome of a check as ``--json`` has it."""
    document: dict[str, Any] = {"same": difference is None, "difference": None}
    if difference is not None:
        then, now = (_side(text, difference, token) for text in (difference.recorded, difference.found))
        document["difference"] = {
            "text": difference.text,
            "token": difference.token,
            "character": difference.character,
            "recorded": then,
            "now": now,
        }
    return {**document, "changes": [{"what": c.what, "recorded": c.then, "now": c.now} for c in changed]}


def _side(text: Any, difference: Difference, token: Any) -> dict[str, Any]:
    """One of two texts where they part."""
    place, ids = difference.token, text.token_ids
    token_id = None if place is None or ids is None or place >= len(ids) else ids[place]
    at = difference.character
    return {
        "token_id": token_id,
        "token": token(token_id),
        "text": None if at is None else text.text[at : at + _SHOWN_CHARACTERS],
        "finish_reason": text.finish_reason,
    }


def _lines(record: RunRecord, difference: Difference | None, changed: list[Change], token: Any) -> list[str]:
    """The outcome of a check for a person."""
    since = "; ".join(f"{change.what} {change.then or '-'} → {change.now or '-'}" for change in changed)
    several = len(record.texts) > 1
    if difference is None:
        what = f"the same {len(record.texts)} texts" if several else "the same text"
        return [f"{what}, bit for bit", *([f"though changed since: {since}"] if since else [])]
    then, now = (_side(text, difference, token) for text in (difference.recorded, difference.found))
    which = f"text {difference.text + 1} of {len(record.texts)}" if several else "the text"
    lines = [f"{which} is another one"]
    if difference.token is not None:
        lines.append(f"token {difference.token + 1}: {_named(then)} was recorded, {_named(now)} came now")
    if difference.character is not None:
        lines.append(
            f"character {difference.character + 1}: {then['text']!r} was recorded, {now['text']!r} came now"
        )
    if then["finish_reason"] != now["finish_reason"]:
        lines.append(f"it ended by {then['finish_reason']}, and now by {now['finish_reason']}")
    lines.append(f"changed since: {since}" if since else "nothing that a record tells has changed since")
    return lines


def _named(side: dict[str, Any]) -> str:
    return "the end" if side["token_id"] is None else f"{side['token_id']} {side['token']!r}"
