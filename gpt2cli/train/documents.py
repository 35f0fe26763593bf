"""Documents from files, read as a stream: nothing here holds more than one piece of a text.

A text file is cut at its separator, a JSONL file has one document a line. A long document comes in
pieces of about a mebibyte, cut at the end of a line. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

PIECE_CHARS = 2**20
JSONL_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", *JSONL_SUFFIXES)
MAX_LINE_CHARS = 2**28
KEY_CHARS = 2 * PIECE_CHARS
"""Documents that agree in so many characters count as the same."""

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a data set, and its content's fingerprint."""

    path: Path
    name: str
    """As the model card shows it: the path below the folder that was given."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class DocumentPiece:
    """A part of a document."""

    text: str
    starts: bool
    """Whether it is the document's first."""


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """The files that ``paths`` name, folders searched in the order of names.

    A folder that holds a training, with what it has made, is left out.

    Raises `UsageError`: nothing there, no text file in a folder, an unreadable or empty file.
    """
    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            trainings = {run.parent.parent for run in path.rglob("training/run.json")}
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in TEXT_SUFFIXES
                and p.is_file()
                and not any(part.startswith(".") for part in p.relative_to(path).parts)
                and trainings.isdisjoint(p.parents)
            )
            if not inside:
                raise UsageError(
                    f"{path}: no text in this folder", hint=f"it is searched for {', '.join(TEXT_SUFFIXES)}"
                )
            found += [(p, str(p.relative_to(path))) for p in inside]
        else:
            found.append((path, path.name))
    return [_fingerprint(path, name) for path, name in found]


def _fingerprint(path: Path, name: str) -> Source:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a regular file", hint="pipe it in, with - for the data")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if not size:
        raise UsageError(f"{path}: the file is empty")
    return Source(path, name, size, digest)


def read_pieces(source: Source, *, field: str, separator: str) -> Iterator[DocumentPiece]:
    """The documents of ``source``, in pieces. Raises `UsageError` where it is no text, or no such JSONL."""
    try:
        with source.path.open(encoding="utf-8-sig", newline=None) as file:
            if source.path.suffix.lower() in JSONL_SUFFIXES:
                yield from _read_jsonl(file, source.path, field)
            else:
                yield from _read_text(file, separator)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source.path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)",
            hint="convert it first, for instance with iconv",
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {source.path}: {error.strerror or error}") from None


def _read_text(file: TextIO, separator: str) -> Iterator[DocumentPiece]:
    """The documents between separators."""
    rest, starts, ended = "", True, False
    while not ended:
        block = file.read(PIECE_CHARS)
        if "\0" in block:
            raise UsageError(f"{file.name}: binary, not text (it has NUL bytes)")
        rest, ended = rest + block, not block
        documents = rest.split(separator) if separator else [rest]
        for document in documents[:-1]:
            yield from _whole(document, starts)
            starts = True
        rest = documents[-1]
        if ended:
            yield from _whole(rest, starts)
        elif len(rest) >= 2 * PIECE_CHARS + len(separator):
            # Not so near its end, where a separator may have begun.
            cut = _line_end(rest, PIECE_CHARS)
            text = rest[:cut].lstrip("\n") if starts else rest[:cut]
            if text.strip() or not starts:
                yield DocumentPiece(text, starts)
                starts = False
            rest = rest[cut:]


def _whole(text: str, starts: bool) -> Iterator[DocumentPiece]:
    """The last piece of a document, without the line ends around it; nothing where it is blank."""
    text = text.strip("\n") if starts else text.rstrip("\n")
    if text.strip():
        yield DocumentPiece(text, starts)


def _line_end(text: str, at_least: int) -> int:
    """Where to cut ``text``: before a line or a word that begins after ``at_least`` characters."""
    for mark in ("\n\n", "\n", " "):
        if (found := text.find(mark, at_least, 2 * PIECE_CHARS)) >= 0:
            return found
    return at_least


def _read_jsonl(file: TextIO, path: Path, field: str) -> Iterator[DocumentPiece]:
    number = 0
    while line := file.readline(MAX_LINE_CHARS):
        number += 1
        if not line.strip():
            continue
        if "\0" in line:
            raise UsageError(f"{path}: binary, not text (it has NUL bytes)")
        text = _field_of(line, path, number, field)
        if text.strip():
            for start, piece in enumerate(_cut(text)):
                yield DocumentPiece(piece, not start)


def _field_of(line: str, path: Path, number: int, field: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{path}, line {number}: not valid JSON") from None
    if not isinstance(record, dict) or field not in record:
        what = f"has no field {shown(field)}" if isinstance(record, dict) else "is not a JSON object"
        fields = ", ".join(name[:40] for name in sorted(record)[:8]) if isinstance(record, dict) else ""
        hint = f"its fields: {fields}; name one with --field" if fields else None
        raise UsageError(f"{path}, line {number}: {what}", hint=hint)
    text = record[field]
    if not isinstance(text, str):
        raise UsageError(f"{path}, line {number}: the field {shown(field)} is not a text")
    # A lone surrogate can be written in JSON, and is no text.
    return text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str) -> Iterator[str]:
    while len(text) > 2 * PIECE_CHARS:
        cut = _line_end(text, PIECE_CHARS)
        yield text[:cut]
        text = text[cut:]
    yield text


def document_key(text: str) -> bytes:
    """The same 16 bytes for texts that differ in white space only, or after `KEY_CHARS`."""
    text = " ".join(text.split())[:KEY_CHARS]
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first reading of the data finds: for each document, its key and its size in bytes."""

    keys: tuple[bytes, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all documents together."""
        return sum(self.sizes)


def survey(pieces: Iterable[DocumentPiece]) -> Survey:
    """Read everything once. The key of a document does not depend on where it is cut into pieces."""
    keys: list[bytes] = []
    sizes: list[int] = []
    beginning, enough = "", False
    for piece in pieces:
        if piece.starts:
            if sizes:
                keys.append(document_key(beginning))
            beginning, enough = piece.text, False
            sizes.append(0)
        elif not enough:
            beginning = _SPACE.sub(" ", beginning + piece.text)
            # One space may stand at either end.
            enough = len(beginning) >= KEY_CHARS + 2
        sizes[-1] += len(piece.text.encode())
    if sizes:
        keys.append(document_key(beginning))
    return Survey(tuple(keys), tuple(sizes))
