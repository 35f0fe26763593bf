"""The recovery file: each change is on the disk before the next key, so that a kill costs nothing.

A file of JSON lines, readable by its owner alone: first the text that the changes begin with, then each
change. One that is killed leaves at most a line unfinished. Whoever has a text open holds a lock on its
recovery file; it goes when the program ends in an orderly way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.editor.document import Change, Document
from gpt2cli.editor.records import draw_of, draw_record, run_records, runs_of
from gpt2cli.editor.spans import Draw, draws_in
from gpt2cli.editor.textfile import Form
from gpt2cli.errors import Gpt2cliError
from gpt2cli.files import try_lock
from gpt2cli.repl.jsonl_log import append_lines, decode_lines, encode_line, open_private, read_at

VERSION = 1


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a program that was killed had open."""

    document: Document
    form: Form
    base: str
    """The text as it stood in the file."""
    time: float
    """When the last change was made, in seconds since 1970."""


class Recovery:
    """The recovery file of one text, locked. ``warn`` is told once that it cannot be written."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.warn: Callable[[str], None] = lambda text: None
        self._known: set[int] = set()
        self._head: dict[str, Any] = {}
        self._begun = self._failed = False

    @classmethod
    def of(cls, file: Path | None) -> Recovery:
        """That of ``file``; of a text without a name one that is to be recovered, or else a new one.

        Raises `Gpt2cliError` where another process has the text open, or nothing can be written.
        """
        folder = paths.state_dir() / "write"
        try:
            if file is not None:
                name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
                found = cls._locked(folder / f"{name}.jsonl")
                if found is None:
                    raise Gpt2cliError(
                        f"{file} is open in another gpt2cli write", hint="leave that one first"
                    )
                return found
            waiting = sorted(folder.glob("untitled-*.jsonl"), key=lambda path: -path.stat().st_mtime)
            numbered = (folder / f"untitled-{number}.jsonl" for number in range(1, 1000))
            for path in (*waiting, *(path for path in numbered if path not in waiting)):
                found = cls._locked(path)
                if found is not None:
                    return found
        except OSError as error:
            raise Gpt2cliError(
                f"{folder}: {error.strerror or error}", hint="the recovery file stands there; GPT2CLI_HOME"
            ) from None
        raise Gpt2cliError(f"{folder}: there are too many unsaved texts")

    @classmethod
    def _locked(cls, path: Path) -> Recovery | None:
        """The file ``path``, locked; None where another process has it. Raises `OSError`."""
        while True:
            descriptor = open_private(path)
            try:
                if not try_lock(descriptor):
                    os.close(descriptor)
                    return None
                same = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except FileNotFoundError:
                same = False
            if same:
                return cls(path, descriptor)
            # Its owner has removed it meanwhile.
            os.close(descriptor)

    def read(self) -> Recovered | None:
        """What is to be recovered; None where there is nothing. Changes behind a damaged line are lost."""
        try:
            status = os.fstat(self._descriptor)
            data = read_at(self._descriptor, status.st_size)
        except OSError:
            return None
        lines = decode_lines(data)
        try:
            recovered = _begun(next(lines, None), status.st_mtime)
        except (ValueError, KeyError, TypeError):
            return None
        changes = _replay(recovered.document, lines)
        with contextlib.suppress(OSError):
            # What is added stands behind what can be read: nothing behind a damaged line is.
            os.ftruncate(self._descriptor, _end_of(data, 1 + changes))
        self._begun = True
        self._known = {draw.number for draw in draws_in(recovered.document.runs)}
        return recovered

    def begin(self, document: Document, form: Form) -> None:
        """From now on `add` takes changes of ``document``, whose text is what the file has."""
        self.clear()
        draws = draws_in(document.runs)
        self._known = {draw.number for draw in draws}
        self._head = {
            "write": VERSION,
            "base": document.text,
            "form": asdict(form),
            "draws": [draw_record(draw) for draw in draws],
            "runs": run_records(document.runs),
        }

    def add(self, change: Change) -> None:
        """Put a change on the disk; with the first one the text that it changes."""
        if self._failed:
            return
        lines = b"" if self._begun else encode_line(self._head)
        lines += encode_line(self._record(change))
        try:
            append_lines(self._descriptor, lines)
            self._begun = True
        except OSError as error:
            self._failed = True
            self.warn(f"no recovery file, save often: {error.strerror or error}")

    def _record(self, change: Change) -> dict[str, Any]:
        record: dict[str, Any] = {"at": change.at, "removed": len(change.removed)}
        if change.inserted:
            record |= {"inserted": change.inserted, "runs": run_records(change.inserted_runs)}
        new = [draw for draw in draws_in(change.inserted_runs) if draw.number not in self._known]
        if new:
            record["draws"] = [draw_record(draw) for draw in new]
            self._known |= {draw.number for draw in new}
        return record

    def clear(self) -> None:
        """The text stands in its file, or is not wanted: there is nothing to recover."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        self._begun = self._failed = False

    def close(self, *, keep: bool = False) -> None:
        """Let go of the file, and remove it unless it is to be kept."""
        if not keep:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _begun(head: Any, changed: float) -> Recovered:
    """The text that the changes begin with. Raises ValueError, KeyError, TypeError."""
    if not isinstance(head, dict) or head.get("write") != VERSION:
        raise ValueError("no recovery file")
    draws = {draw.number: draw for draw in map(draw_of, head["draws"])}
    base = head["base"]
    if not isinstance(base, str):
        raise ValueError("the text is no text")
    document = Document(base, runs_of(head["runs"], draws, len(base)))
    return Recovered(document, Form(**head["form"]), base, changed)


def _end_of(data: bytes, lines: int) -> int:
    """Where in a file so many lines end, empty ones not counted."""
    end = 0
    for line in data.split(b"\n"):
        if not lines:
            break
        end += len(line) + 1
        lines -= bool(line.strip())
    return min(end, len(data))


def _replay(document: Document, lines: Iterator[Any]) -> int:
    """Make the changes again, as far as they can be; how many there were."""
    made = 0
    draws: dict[int, Draw] = {draw.number: draw for draw in draws_in(document.runs)}
    for record in lines:
        try:
            draws |= {draw.number: draw for draw in map(draw_of, record.get("draws", []))}
            at, removed, inserted = record["at"], record["removed"], record.get("inserted", "")
            runs = runs_of(record.get("runs", []), draws, len(inserted))
            if not 0 <= at <= at + removed <= len(document.text):
                break
            document.apply(document.change(at, removed, inserted, runs))
        except (ValueError, KeyError, TypeError, AttributeError):
            break
        made += 1
    return made
