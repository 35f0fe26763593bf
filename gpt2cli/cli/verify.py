"""``gpt2cli verify``: whether models are what they were when they came in, and say what is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.cli import params
from gpt2cli.cli.flags import read_settings
from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.hub.inventory import all_models, as_stored, published_as, short_name
from gpt2cli.hub.reference_texts import Continuation, continuations
from gpt2cli.hub.resolve import locate_reference
from gpt2cli.hub.store import StoredModel, repair_command, unreadable_manifests
from gpt2cli.hub.verify import FilesReport, Status, verify_files
from gpt2cli.options import GenerateOptions, LoadOptions
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import tab_separated
from gpt2cli.text.sanitize import one_line

EXAMPLES = """Examples:

  gpt2cli verify

  gpt2cli verify gpt2 my-stories

  gpt2cli verify --files-only --json | jq '.models[] | select(.status != "verified")'
"""


@dataclass(frozen=True, slots=True)
class TextCheck:
    """A published continuation, and what the model made of its prompt.

    Where it made nothing, ``problem`` says why; it is unverified when that is not the model's fault.
    """

    fact: Continuation
    status: Status
    found: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about one model."""

    files: FilesReport
    texts: tuple[TextCheck, ...]

    @property
    def status(self) -> Status:
        """The worst of the files and the texts."""
        found = {self.files.status, *(text.status for text in self.texts)}
        order: tuple[Status, ...] = ("damaged", "unverified", "verified")
        return next(status for status in order if status in found)

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        wrong = [text for text in self.texts if text.status != "verified"]
        return self.files.problems + [
            f"{text.fact.prompt!r}: {text.problem or f'{text.found!r}, and published is {text.fact.text!r}'}"
            for text in wrong
        ]


def verify(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Models, or NAME@REVISION. Default: all on this disk.", show_default=False
        ),
    ] = None,
    files_only: Annotated[
        bool,
        typer.Option("--files-only", help="Check the files only, without generating the published texts."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Check models: the hash of every file, the tensor table, and the published texts of the five models."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    chosen = [as_stored(locate_reference(text)) for text in models] if models else list(all_models())
    reports = []
    for model in chosen:
        if terminal.stderr_is_terminal:
            terminal.note(f"reading {short_name(model)} …")
        report = _check(terminal, model, texts=not files_only)
        reports.append(report)
        if not json:
            _show(terminal, report)
    unreadable = [] if models else unreadable_manifests()
    if json:
        documents = [_document(report) for report in reports]
        terminal.write(json_line({"models": documents, "damaged_manifests": [str(p) for p in unreadable]}))
    elif not chosen:
        terminal.note("no models on this disk")
    _raise_for(reports, unreadable)


def _check(terminal: Terminal, model: StoredModel, *, texts: bool) -> Report:
    files = verify_files(model)
    known = published_as(model)
    facts = continuations(known.repository) if known and texts and files.status != "damaged" else ()
    return Report(files, tuple(_compare(terminal, model, facts)) if facts else ())


def _compare(terminal: Terminal, model: StoredModel, facts: Sequence[Continuation]) -> Iterator[TextCheck]:
    """Continue each published prompt, greedily, in fp32 on the CPU, as it was published."""
    with terminal.signals.deferred():
        from gpt2cli.core.engine import Engine

    load = LoadOptions(device="cpu", precision="fp32", allow_pickle=True)
    try:
        engine = Engine.from_checkpoint(open_checkpoint(model.directory, allow_pickle=True), load)
    except Gpt2cliError as error:
        yield from [_failed(fact, error) for fact in facts]
        return
    for fact in facts:
        options = GenerateOptions(temperature=0.0, max_new_tokens=fact.max_new_tokens)
        try:
            found = fact.prompt + engine.generate(fact.prompt, options).text
        except Gpt2cliError as error:
            yield _failed(fact, error)
            continue
        yield TextCheck(fact, "verified" if found == fact.text else "damaged", found)


def _failed(fact: Continuation, error: Gpt2cliError) -> TextCheck:
    # The plain error is one of this machine, too little memory; the others are the model's.
    return TextCheck(fact, "unverified" if type(error) is Gpt2cliError else "damaged", problem=str(error))


def _show(terminal: Terminal, report: Report) -> None:
    """One model's outcome: a line, and what lies behind it."""
    model = report.files.model
    detail = _detail(report)
    if not terminal.stdout_is_terminal:
        terminal.write(tab_separated([(short_name(model), model.revision, report.status, detail)]))
    else:
        revision = f"@{model.revision[:7]}" if model.revision else ""
        terminal.write(f"{one_line(short_name(model))}{one_line(revision)}: {report.status}, {detail}\n")
        for text in report.texts:
            if text.status == "verified":
                line = f"  as published: {one_line(text.fact.text)!r} ({text.fact.source})"
                terminal.write(terminal.dim(one_line(line)) + "\n")
    for problem in report.problems:
        terminal.warn(f"{short_name(model)}: {problem}")
    if report.status == "damaged":
        terminal.note(f"to repair it: {_repair(report)}")


def _detail(report: Report) -> str:
    files = [check for check in report.files.files if check.status != "deleted"]
    good = sum(check.status == "verified" for check in files)
    detail = f"{good} of {len(files)} files have the right hash"
    if report.files.status == "unverified":
        reasons = {check.detail for check in files if check.status == "unverified"}
        detail += f" ({'; '.join(sorted(reasons)) or 'the manifest lists none'})"
    if report.texts:
        right = sum(text.status == "verified" for text in report.texts)
        detail += f", {right} of {len(report.texts)} texts are as published"
    return detail


def _document(report: Report) -> dict[str, Any]:
    model = report.files.model
    return {
        "name": short_name(model),
        "repository": model.name,
        "revision": model.revision or None,
        "source": model.source,
        "path": str(model.directory),
        "status": report.status,
        "files": [asdict(check) for check in report.files.files],
        "texts": [
            {
                "prompt": text.fact.prompt,
                "published": text.fact.text,
                "found": text.found,
                "as_published": text.found == text.fact.text,
                "source": text.fact.source,
            }
            for text in report.texts
        ],
        "problems": report.problems,
        "repair": _repair(report) if report.status == "damaged" else None,
    }


def _repair(report: Report) -> str:
    """What puts a damaged model right: it is its files, or what it makes of a text."""
    return report.files.repair or repair_command(report.files.model)


def _raise_for(reports: Sequence[Report], unreadable: Sequence[Path]) -> None:
    """Raise `ModelFileError` where something is damaged, `Gpt2cliError` where a model stays unverified."""
    damaged = [report for report in reports if report.status == "damaged"]
    if damaged:
        names = ", ".join(short_name(report.files.model) for report in damaged)
        raise ModelFileError(f"damaged: {names}", hint=f"to repair it: {_repair(damaged[0])}")
    if unreadable:
        raise ModelFileError(
            f"{unreadable[0]}: the manifest is damaged",
            hint="delete it, and pull or import the model again",
        )
    unverified = [short_name(r.files.model) for r in reports if r.status == "unverified"]
    if unverified:
        raise Gpt2cliError(
            f"not verified: {', '.join(unverified)}",
            hint="gpt2cli verify --json says what could not be checked",
        )
