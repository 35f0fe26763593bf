"""Many texts from one source: a line each, or a JSON object each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli.cli.flags import PromptFlags
from gpt2cli.cli.prompt import clean_typed, named_sources
from gpt2cli.errors import UsageError
from gpt2cli.options import shown
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.reading import clean, decode, without_mark

MAX_LINE_BYTES = 32 * 2**20
BLOCK_BYTES = 2**16
JSONL_SUFFIXES = (".jsonl", ".ndjson")

Read = Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True)
class TextsFlags(PromptFlags):
    """Where texts come from: one, a line each, or a JSON object each."""

    lines: bool
    from_jsonl: bool
    field: str | None

    def check(self) -> None:
        """Raise `UsageError` for what does not go together."""
        if self.lines and self.from_jsonl:
            raise UsageError("--lines and --from-jsonl do not go together")

    @property
    def as_records(self) -> bool:
        """Whether each line is a JSON object."""
        return self.from_jsonl or (says_jsonl(self.file) and not self.lines)

    @property
    def many(self) -> bool:
        """Whether each line has a text of its own."""
        return self.lines or self.as_records


@dataclass(frozen=True, slots=True)
class Source:
    """Where the text comes from: ``read`` gives its bytes; ``path`` and ``size`` of a regular file only."""

    name: str
    read: Read
    seek: Callable[[int], object] | None = None
    path: Path | None = None
    size: int | None = None
    typed: bool = False
    """On the command line: then a final newline belongs to the text."""


@contextlib.contextmanager
def open_source(terminal: Terminal, flags: PromptFlags, *, lines: bool = False) -> Iterator[Source]:
    """The source that a command line names (`gpt2cli.cli.prompt.named_sources`). Raises `UsageError`.

    What is given before stdin is joined to it by a space, with ``lines`` by a line end, where none of them
    is there already.
    """
    named = named_sources(terminal, flags)
    with contextlib.ExitStack() as stack:
        source = Source("standard input", terminal.read_stdin)
        if named.file is not None:
            source = _file_source(stack.enter_context(_open(named.file)), named.file)
        elif named.typed is not None:
            data = BytesIO(clean_typed(terminal, named.typed, strict=flags.strict).encode("utf-8", "replace"))
            source = Source("the text", data.read, data.seek, typed=True)
        if named.stdin and source.seek is not None:
            name = f"{source.name} and standard input"
            source = Source(name, _joined(source.read, terminal.read_stdin, b"\n" if lines else b" "))
        yield source


def _file_source(opened: BinaryIO, file: Path) -> Source:
    regular = file.is_file()
    size = file.stat().st_size if regular else None
    return Source(str(file), _checked(opened.read, file), opened.seek, file if regular else None, size)


def _joined(before: Read, after: Read, joint: bytes) -> Read:
    """``after`` read after ``before``, without a byte-order mark, and ``joint`` between them where it is
    neither at their border nor implied by a white space there.
    """
    last, first = b"", True

    def read(limit: int) -> bytes:
        nonlocal last, first
        if first:
            data = before(limit)
            if data:
                last = data[-1:]
                return data
            first = False
            wanted = last != b"\n" if joint == b"\n" else not last.isspace()
            data = without_mark(after(max(limit, 3)))
            return joint + data if last and wanted else data
        return after(limit)

    return read


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def _checked(read: Read, file: Path) -> Read:
    def checked(limit: int) -> bytes:
        try:
            return read(limit)
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror or error}") from None

    return checked


@dataclass(frozen=True, slots=True)
class Record:
    """One text of many."""

    index: int
    text: str
    id: Any = None
    """The record's own ``id``, as it stands in the JSON."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    end: int = 0
    """Where what follows it begins in the source, in bytes."""
    bad: int = 0
    """Bytes that were NUL or no UTF-8, replaced by U+FFFD."""

    @property
    def place(self) -> str:
        """As a message names it."""
        return f"line {self.index + 1}"

    def __str__(self) -> str:
        return self.place


def read_lines(read: Read, name: str, *, offset: int = 0, index: int = 0) -> Iterator[Record]:
    """The lines of a source, without their ends. Raises `UsageError` for one without an end in sight."""
    rest, ended = b"", False
    while not ended:
        block = read(BLOCK_BYTES)
        ended = not block
        rest += block
        lines = rest.split(b"\n")
        rest = b"" if ended else lines.pop()
        if ended and lines[-1] == b"":
            lines.pop()
        for number, line in enumerate(lines):
            offset += len(line) + (not ended or number < len(lines) - 1)
            text, bad = clean(decode(line if index else without_mark(line)).removesuffix("\r"))
            yield Record(index, text, end=offset, bad=bad)
            index += 1
        if len(rest) > MAX_LINE_BYTES:
            raise UsageError(f"{name}: line {index + 1} is longer than {MAX_LINE_BYTES >> 20} MiB")


def read_records(
    read: Read, name: str, field: str | None, *, offset: int = 0, index: int = 0
) -> Iterator[Record]:
    """The JSON objects of a source, one a line, with the text in ``field``; blank lines are left out.

    Without ``field`` the text is in ``text``, else in ``prompt``. Raises `UsageError`.
    """
    for line in read_lines(read, name, offset=offset, index=index):
        if not line.text.strip():
            continue
        where = f"{name}, {line.place}"
        try:
            data = json.loads(line.text)
        except (ValueError, RecursionError):
            raise UsageError(f"{where}: not valid JSON") from None
        if not isinstance(data, dict):
            raise UsageError(f"{where}: not a JSON object")
        found = next((f for f in ([field] if field else ["text", "prompt"]) if f in data), None)
        if found is None:
            fields = ", ".join(key[:40] for key in sorted(data)[:8])
            raise UsageError(
                f"{where}: has no field {shown(field or 'text')}",
                hint=f"its fields: {fields}; name one with --field" if fields else None,
            )
        if not isinstance(data[found], str):
            raise UsageError(f"{where}: the field {shown(found)} is not a text")
        text, bad = clean(data[found])
        yield Record(line.index, text, data.get("id"), data, line.end, line.bad + bad)


def some_records(found: Iterable[Record], name: str) -> Iterator[Record]:
    """``found``, of which there must be one at least. Raises `UsageError`."""
    empty = True
    for record in found:
        empty = False
        yield record
    if empty:
        raise UsageError(f"{name} holds no text")


@contextlib.contextmanager
def at_record(record: Record) -> Iterator[None]:
    """A `UsageError` of the block names the line that it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{record.place}: {error}", hint=error.hint) from None


def says_jsonl(file: Path | None) -> bool:
    """Whether a file's name says that it holds JSON lines."""
    return file is not None and file.suffix.lower() in JSONL_SUFFIXES
