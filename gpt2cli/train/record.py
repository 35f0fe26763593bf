"""What a training leaves beside its checkpoints: the recipe, and the events. No torch here."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.files import write_atomically
from gpt2cli.train.options import Recipe

FORMAT = 1

Report = Callable[[dict[str, Any]], None]
"""Takes one event; its key ``event`` says which."""


class TrainingRecord:
    """The record of the training in ``directory``."""

    def __init__(self, directory: Path, report: Report) -> None:
        self.directory, self._report = directory, report
        self.work = directory / "training"
        self.checkpoints = self.work / "checkpoints"
        self.adapter = self.work / "adapter"
        self._made = False

    def check_free(self) -> None:
        """Raise `UsageError` when ``directory`` is in use."""
        if not self.directory.exists():
            return
        if not self.directory.is_dir() or any(self.directory.iterdir()):
            resumable = (self.work / "run.json").exists()
            raise UsageError(
                f"{self.directory}: already there, and not empty",
                hint="--resume goes on with it" if resumable else "name another directory",
            )

    def check(self, fingerprint: str) -> None:
        """Raise `UsageError` unless there is a training on the same data to go on with."""
        if read_record(self.directory)["fingerprint"] != fingerprint:
            raise UsageError(
                f"{self.directory}: the data is not what the training began with",
                hint="a training is resumed on the same files",
            )

    def write(self, recipe: Recipe, fingerprint: str) -> None:
        """Write ``run.json``. Raises `UsageError`, `Gpt2cliError`."""
        try:
            self._made = not self.directory.exists()
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write {self.directory}: {error.strerror or error}") from None
        content = {"format": FORMAT, "fingerprint": fingerprint, "recipe": _plain(asdict(recipe))}
        write_atomically(self.work / "run.json", json.dumps(content, indent=2) + "\n")

    def discard(self) -> None:
        """Remove what is recorded, and the directory where `write` made it and nothing else is in it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):
                self.directory.rmdir()

    def emit(self, event: dict[str, Any]) -> None:
        """Report an event, and keep it."""
        with contextlib.suppress(OSError), (self.work / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self._report(event)

    def curve(self) -> list[dict[str, Any]]:
        """The events ``step`` and ``evaluation`` in order; of a step done twice, the last."""
        points: dict[tuple[int, str], dict[str, Any]] = {}
        with contextlib.suppress(OSError), (self.work / "events.jsonl").open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    event = json.loads(line)
                    if event["event"] in ("step", "evaluation"):
                        points[event["step"], event["event"]] = event
        return [points[key] for key in sorted(points)]


def read_record(directory: Path) -> dict[str, Any]:
    """The content of ``run.json``. Raises `UsageError` where there is no training."""
    try:
        record: dict[str, Any] = json.loads((directory / "training" / "run.json").read_bytes())
        if record["format"] != FORMAT or not isinstance(record["recipe"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{directory}: no training to resume there") from None
    return record


def _plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
