"""What ``train``, ``finetune`` and ``distill`` share: from the command line to the finished model."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import typer

from gpt2cli import paths
from gpt2cli.cli.flags import read_settings
from gpt2cli.cli.recipe import (
    DISTILL_FLAGS,
    EXPORT_FLAGS,
    LORA_FLAGS,
    RUN_ONLY,
    build,
    read_recipe_file,
)
from gpt2cli.cli.training_report import TrainingReport
from gpt2cli.errors import Gpt2cliError, Interrupted, UsageError
from gpt2cli.hub.registry import ModelName, parse_name
from gpt2cli.hub.store import add_local, check_name_is_free
from gpt2cli.terminal.plots import check_plot_path
from gpt2cli.terminal.streams import Terminal
from gpt2cli.train.options import (
    DataOptions,
    DistillOptions,
    ExportOptions,
    LoraOptions,
    Recipe,
    ShapeOptions,
    TrainOptions,
)
from gpt2cli.train.record import read_record

Command = Literal["train", "finetune", "distill"]
Given = Mapping[str, Any]
Base = Callable[[Given], tuple[Path, str] | None]
"""The directory and the name of the model to start from; None for a new one."""

STDIN_BLOCK = 2**20
INSTALL_HINT = "pip install 'gpt2cli[train]'"
_NEEDED = ("accelerate", "peft")


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """A command line that was found to be in order; no data has been read yet."""

    terminal: Terminal
    recipe: Recipe
    directory: Path
    name: ModelName | None
    temporary: bool
    """Whether ``directory`` goes when the model is in the store."""
    resume: bool
    keep_checkpoints: bool
    plot: Path | None
    jsonl: bool


def run_command(ctx: typer.Context, command: Command, base: Base = lambda given: None) -> None:
    """Train as the command line says, and put the result where it says."""
    request = _read_request(ctx.obj, command, ctx.params, base)
    _check_installed()
    _run(request)


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise Gpt2cliError(f"training needs the package {missing[0]}", hint=INSTALL_HINT)


def _read_request(terminal: Terminal, command: Command, flags: Given, base: Base) -> TrainingRequest:
    read_settings(terminal, flags["quiet"])
    if flags["jsonl"]:
        terminal.check_stdout()
    given: dict[str, Any] = {key: v for key, v in flags.items() if v is not None and v not in ([], ())}
    if flags["config"] is not None:
        given = {**read_recipe_file(flags["config"], flags.keys() - RUN_ONLY), **given}
    directory, name = _destination(given)
    recorded: Recipe | None = None
    if flags["resume"]:
        recorded = _recorded_recipe(directory, command)
    elif name is not None:
        check_name_is_free(name)
    if flags["plot"] is not None:
        check_plot_path(flags["plot"])
    recipe = _build_recipe(terminal, command, given, base, recorded)
    return TrainingRequest(
        terminal=terminal,
        recipe=recipe,
        directory=directory,
        name=name,
        temporary="output" not in given,
        resume=flags["resume"],
        keep_checkpoints=bool(given.get("keep_checkpoints")),
        plot=flags["plot"],
        jsonl=flags["jsonl"],
    )


def _destination(given: Given) -> tuple[Path, ModelName | None]:
    name = parse_name(str(given["name"])) if "name" in given else None
    if "output" in given:
        return Path(given["output"]), name
    if name is None:
        raise UsageError("there is no place for the model", hint="give --output DIR, or --name NAME")
    return paths.state_dir() / "training" / name.given.replace("/", "--"), name


def _recorded_recipe(directory: Path, command: Command) -> Recipe:
    """The recipe of the training in ``directory``, as it was written. Raises `UsageError`."""
    raw = read_record(directory)["recipe"]
    if raw.get("command") != command:
        raise UsageError(f"{directory}: its training is one of gpt2cli {raw.get('command')}")
    try:
        data = {**raw["data"]}
        for key in ("data", "validation_data", "test_data"):
            data[key] = tuple(Path(path) for path in data[key])
        return Recipe(
            command=command,
            data=DataOptions(**data),
            train=TrainOptions(**raw["train"]),
            export=ExportOptions(**raw["export"]),
            base=Path(raw["base"]) if raw["base"] else None,
            base_name=raw["base_name"],
            shape=ShapeOptions(**raw["shape"]) if raw["shape"] else None,
            lora=LoraOptions(**raw["lora"]) if raw["lora"] else None,
            distill=DistillOptions(**raw["distill"]) if raw["distill"] else None,
        )
    except (KeyError, TypeError):
        raise UsageError(f"{directory}: the record of its training is damaged") from None


def _build_recipe(
    terminal: Terminal, command: Command, given: Given, base: Base, recorded: Recipe | None
) -> Recipe:
    """The recipe of the command line, over the ``recorded`` one of a training that goes on."""
    data = {key: value for key, value in given.items() if key not in ("data", "validation_data", "test_data")}
    for key in ("data", "validation_data", "test_data"):
        if key in given:
            data[key] = [_absolute(terminal, path, given) for path in given[key]]
    if recorded is not None:
        _check_adapter(given, lora=recorded.lora is not None)
        return replace(
            recorded,
            lora=build(LoraOptions, {"keep_adapter": True}, LORA_FLAGS, over=recorded.lora)
            if given.get("keep_adapter")
            else recorded.lora,
            data=build(DataOptions, data, over=recorded.data),
            train=build(TrainOptions, given, over=recorded.train),
            export=build(ExportOptions, given, EXPORT_FLAGS, over=recorded.export),
        )
    if not data.get("data"):
        raise UsageError("no data is given", hint="name text files or folders, or - for stdin")
    _check_adapter(given, lora=bool(given.get("lora")))
    started_from = base(given)
    return Recipe(
        command=command,
        data=build(DataOptions, data),
        train=build(TrainOptions, given),
        export=build(ExportOptions, given, EXPORT_FLAGS),
        shape=build(ShapeOptions, given) if command == "train" else None,
        lora=build(LoraOptions, given, LORA_FLAGS) if given.get("lora") else None,
        distill=build(DistillOptions, given, DISTILL_FLAGS) if command == "distill" else None,
        base=started_from[0].absolute() if started_from else None,
        base_name=started_from[1] if started_from else None,
    )


def _check_adapter(given: Given, *, lora: bool) -> None:
    """Raise `UsageError` where there is no adapter, or no place for one."""
    if not given.get("keep_adapter"):
        return
    if not lora:
        raise UsageError("--keep-adapter needs --lora")
    if "output" not in given:
        raise UsageError("--keep-adapter needs --output DIR", hint="the adapter is DIR/adapter")


def _absolute(terminal: Terminal, path: Any, given: Given) -> Path:
    if str(path) == "-":
        return _spool_stdin(terminal, ".jsonl" if "field" in given else ".txt")
    return Path(os.path.expanduser(str(path))).absolute()


def _spool_stdin(terminal: Terminal, suffix: str) -> Path:
    """Standard input in a file named by its content, since it is read more than once."""
    folder = paths.cache_dir() / "tokens"
    digest = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                while block := terminal.read_stdin(STDIN_BLOCK):
                    digest.update(block)
                    file.write(block)
                file.flush()
                target = folder / f"stdin-{digest.hexdigest()[:32]}{suffix}"
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise Gpt2cliError(f"cannot write to {folder}: {error.strerror or error}") from None
    if not target.stat().st_size:
        raise UsageError("standard input is empty")
    return target


def _run(request: TrainingRequest) -> None:
    terminal = request.terminal
    with terminal.signals.deferred():
        from gpt2cli.train.run import ADAPTER, run

    report = TrainingReport(terminal, jsonl=request.jsonl)
    asked_to_stop: list[bool] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            # From here on there is something to keep: the step is finished, and a checkpoint written.
            terminal.signals.soften(lambda: asked_to_stop.append(True))
        report.event(event)

    outcome = run(
        request.recipe,
        request.directory,
        resume=request.resume,
        keep_checkpoints=request.keep_checkpoints,
        report=on_event,
        interrupted=lambda: bool(asked_to_stop),
    )
    if outcome.facts is None:
        output = None if request.temporary else request.directory
        report.interrupted(outcome.step, request.recipe.command, output, request.name)
        raise terminal.signals.received or Interrupted("interrupted")
    place = str(request.directory)
    if request.name is not None:
        add_local(request.directory, request.name, _source(request))
        place = request.name.given
        if request.temporary and not request.keep_checkpoints:
            shutil.rmtree(request.directory, ignore_errors=True)
    kept = request.recipe.lora is not None and request.recipe.lora.keep
    adapter = request.directory / ADAPTER if kept else None
    report.finish(outcome.facts, place, request.plot, adapter)


def _source(request: TrainingRequest) -> dict[str, Any]:
    source: dict[str, Any] = {"kind": request.recipe.command}
    if request.recipe.base_name:
        source["base"] = request.recipe.base_name
    return source
