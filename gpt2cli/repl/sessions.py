"""Sessions on disk: one file each, written as the conversation goes.

``state_dir/sessions/NAME.jsonl``: first a header (``event: session``, the version, how the session
began), then an event a line: ``turn``; ``move`` to a turn that is there (undo, go); ``options``, ``seed``,
``system``, ``format`` and ``model`` where they change. A turn has its text, the tokens of its answer, its
seed and options: enough to draw it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import move_new, try_lock
from gpt2cli.options import MAX_SEED, shown
from gpt2cli.repl.formats import FORMATS
from gpt2cli.repl.jsonl_log import append_lines, decode_lines, encode_line, open_private, read_at
from gpt2cli.repl.options import checked_options
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.text.reading import cleaned

VERSION = 1
MAX_BYTES = 64 * 2**20
"""A session that has grown beyond it is not saved further."""
MAX_UNSAVED = 2**20
_HEAD_BYTES = 64 * 2**10
_NAME = re.compile(r"\w[\w.-]{0,63}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUFFIX = ".jsonl"


@dataclass(slots=True)
class Saved:
    """A session as its file has it."""

    model: str
    revision: str | None
    format: str
    system: str
    options: dict[str, Any]
    seed: int
    tree: Tree = field(default_factory=Tree)
    damaged: int = 0
    """Lines that were skipped."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a list of sessions shows; ``title`` is the first thing that was said."""

    name: str
    path: Path
    modified: float
    """Seconds since 1970."""
    size: int
    model: str
    title: str


class Session:
    """The file of one session, which no other process has open.

    ``error`` is why the last event could not be written; what was not is tried again with the next.
    """

    def __init__(self, name: str | None = None) -> None:
        self._wanted = name
        self._path: Path | None = None
        self._descriptor = -1
        self._unsaved = b""
        self.error: str | None = None
        if name is not None and _path_of(name).exists():
            raise UsageError(
                f"there is a session {name} already",
                hint=f"chat --resume {name}, or /load {name}, goes on with it",
            )

    @property
    def name(self) -> str | None:
        """The name; None before anything is saved, unless one was asked for."""
        return self._path.name.removesuffix(_SUFFIX) if self._path else self._wanted

    @property
    def path(self) -> Path | None:
        """The file; None before anything is saved."""
        return self._path

    @classmethod
    def open(cls, name: str) -> tuple[Session, Saved]:
        """Go on with the session ``name``.

        Raises `UsageError` when there is none, it is open elsewhere, or is none that this version can
        read; `Gpt2cliError` when its file cannot be read.
        """
        path = _path_of(name)
        session = cls()
        try:
            if not path.is_file():
                raise UsageError(f"there is no session {shown(name)}", hint=_names_hint())
            descriptor = open_private(path)
            session._path, session._descriptor = path, descriptor
            if not try_lock(descriptor):
                raise UsageError(
                    f"the session {name} is open in another gpt2cli", hint="close it there first"
                )
            return session, parse_session(_read(descriptor), name)
        except OSError as error:
            session.close()
            raise Gpt2cliError(f"cannot read {path}: {error.strerror or error}") from None
        except BaseException:
            session.close()
            raise

    def write(self, header: Mapping[str, Any], *events: Mapping[str, Any]) -> None:
        """Append ``events``; the file begins with ``header`` where it is new."""
        data = b"".join(map(encode_line, events))
        try:
            if self._path is None:
                self._create(encode_line({"event": "session", "version": VERSION, **header}))
            if os.fstat(self._descriptor).st_size + len(data) > MAX_BYTES:
                raise OSError(f"the session has grown beyond {MAX_BYTES >> 20} MiB")
            append_lines(self._descriptor, self._unsaved + data)
        except OSError as error:
            if len(self._unsaved) + len(data) <= MAX_UNSAVED:
                self._unsaved += data
            self.error = error.strerror or str(error)
        else:
            self._unsaved, self.error = b"", None

    def rename(self, name: str) -> None:
        """Give the session another name. Raises `UsageError`, `Gpt2cliError`."""
        target = _path_of(name)
        if target == self._path:
            return
        if target.exists():
            raise UsageError(f"there is a session {name} already", hint="choose another name")
        self._wanted = name
        if self._path is None:
            return
        self.close()
        try:
            move_new(self._path, target)
            self._path = target
        except FileExistsError:
            raise UsageError(f"there is a session {name} already", hint="choose another name") from None
        except OSError as error:
            raise Gpt2cliError(f"cannot write {target}: {error.strerror or error}") from None
        finally:
            # Windows renames no file that is open.
            self._reopen()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _create(self, header: bytes) -> None:
        """Make the file with its header in one step, under a name that is free. Raises `OSError`."""
        folder = sessions_dir()
        temporary = folder / f".{secrets.token_hex(8)}.new"
        descriptor = open_private(temporary, os.O_EXCL)
        try:
            try:
                append_lines(descriptor, header)
            finally:
                os.close(descriptor)
            path = _path_of(self._wanted or _new_name())
            move_new(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._path = path
        self._reopen()

    def _reopen(self) -> None:
        """Open the file for appending; where that fails, the next write says so."""
        with contextlib.suppress(OSError):
            if self._path is not None:
                self._descriptor = open_private(self._path)
                try_lock(self._descriptor)


def sessions_dir() -> Path:
    """Where the sessions are."""
    return paths.state_dir() / "sessions"


def list_sessions() -> list[SessionInfo]:
    """The sessions on this disk, the newest first; what cannot be read is left out."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(sessions_dir()):
            name = entry.name.removesuffix(_SUFFIX)
            if entry.name.endswith(_SUFFIX) and _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    info = _info(name, Path(entry.path))
                    found += [info] if info else []
    return sorted(found, key=lambda info: (-info.modified, info.name))


def last_session() -> str:
    """The name of the newest session. Raises `UsageError` when there is none."""
    sessions = list_sessions()
    if not sessions:
        raise UsageError("there is no session yet", hint="gpt2cli chat starts one")
    return sessions[0].name


def parse_session(data: bytes, name: str) -> Saved:
    """A session from the content of its file.

    Lines that are damaged are skipped and counted; a turn whose parent was in one stands under the
    turn before it. Raises `UsageError` for what is no session, or one of a newer version.
    """
    lines = decode_lines(data)
    header = next(lines, None)
    if not isinstance(header, dict) or header.get("event") != "session":
        raise UsageError(f"{name}: not a session of gpt2cli chat")
    version = header.get("version")
    if type(version) is not int or version > VERSION:
        raise UsageError(
            f"{name}: written by a newer gpt2cli (version {shown(version)}; this one reads {VERSION})",
            hint="use the newer gpt2cli for it",
        )
    saved = Saved("", None, "story", "", {}, 0)
    for event in ("model", "format", "system", "options", "seed"):
        saved.damaged += not _apply(saved, {**header, "event": event})
    for line in lines:
        saved.damaged += not _apply(saved, line)
    return saved


def turn_event(turn: Turn) -> dict[str, Any]:
    """A turn as its line has it."""
    return {
        "event": "turn",
        "id": turn.id,
        "parent": turn.parent,
        "user": turn.user,
        "answer": turn.answer,
        "ids": list(turn.answer_ids),
        "seed": turn.seed,
        "draw": turn.draw,
        "options": turn.options,
        "finish": turn.finish_reason,
        "first": turn.first,
        "continues": turn.continues,
        "time": round(time.time(), 1),
    }


def _apply(saved: Saved, event: Any) -> bool:
    """Take in one event; false for one that is damaged, which leaves no trace."""
    if not isinstance(event, dict):
        return False
    try:
        match event.get("event"):
            case "turn":
                return _apply_turn(saved, event)
            case "move":
                to = event["to"]
                saved.tree.go(None if to is None else _whole(to, 1))
            case "options":
                saved.options = checked_options(event["options"])
            case "seed":
                saved.seed = _whole(event["seed"], 0, MAX_SEED)
            case "system":
                saved.system = cleaned(_text(event["system"]))
            case "format":
                saved.format = _format(event["format"])
            case "model":
                revision = event.get("revision")
                model, format = _text(event["model"]), _format(event["format"])
                saved.revision = None if revision is None else _text(revision)
                saved.model, saved.format = model, format
            case _:
                return False
    except (KeyError, TypeError, ValueError, Gpt2cliError):
        return False
    if event["event"] in ("system", "format", "model"):
        for turn in saved.tree:
            turn.first = None
    return True


def _apply_turn(saved: Saved, event: Mapping[str, Any]) -> bool:
    tree = saved.tree
    turn_id, finish = _whole(event["id"], 1), event["finish"]
    parent, first, continues = (_reference(tree, event[name]) for name in ("parent", "first", "continues"))
    lost = parent is None and event["parent"] is not None
    if lost:
        parent = tree.current.id if tree.current else None
    tree.add(
        Turn(
            id=turn_id,
            parent=parent,
            user=cleaned(_text(event["user"])),
            answer=_text(event["answer"]),
            answer_ids=[_whole(token, 0) for token in event["ids"]],
            seed=_whole(event["seed"], 0, MAX_SEED),
            draw=_whole(event["draw"], 0),
            options=checked_options(event["options"]),
            finish_reason=None if finish is None else _text(finish),
            first=turn_id if event["first"] == turn_id else first,
            continues=continues,
        )
    )
    return not lost


def _reference(tree: Tree, value: Any) -> int | None:
    """The id of a turn that is there."""
    return value if type(value) is int and value in tree else None


def _whole(value: Any, low: int, high: int = 2**31 - 1) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return _SURROGATE.sub("\ufffd", value)


def _format(value: Any) -> str:
    if value not in FORMATS:
        raise ValueError
    return str(value)


def _path_of(name: str) -> Path:
    """The file of the session ``name``. Raises `UsageError` for what is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{shown(name)} is not a name for a session",
            hint="letters, digits, _, - and . (not first); up to 64",
        )
    return sessions_dir() / f"{name}{_SUFFIX}"


def _new_name() -> str:
    """A name from the time, to the second, and chance."""
    return f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}"


def _names_hint() -> str:
    names = [info.name for info in list_sessions()[:5]]
    return f"sessions: {', '.join(names)}" if names else "there is none yet"


def _read(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > 2 * MAX_BYTES:
        raise UsageError(f"a session of {size >> 20} MiB is larger than gpt2cli writes")
    return read_at(descriptor, size)


def _info(name: str, path: Path) -> SessionInfo | None:
    with path.open("rb") as file:
        status, head = os.fstat(file.fileno()), file.read(_HEAD_BYTES)
    lines = decode_lines(head)
    header = next(lines, None)
    if not isinstance(header, dict) or header.get("event") != "session":
        return None
    said = (line["user"] for line in lines if isinstance(line, dict) and isinstance(line.get("user"), str))
    return SessionInfo(
        name, path, status.st_mtime, status.st_size, str(header.get("model", "")), next(said, "")
    )
