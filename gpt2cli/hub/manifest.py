"""The record of a model revision in the store: where it came from, its files, their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt2cli.files import write_atomically
from gpt2cli.options import MAX_WHOLE

FORMAT = 1
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a model. ``path`` is a plain file name."""

    path: str
    size: int
    sha256: str
    verified: str = "computed here"
    """What the hash was checked against when the file came in."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a revision.

    ``refs`` are the branches and tags asked for that led to it. ``source`` is where it came from: an
    object with ``kind`` (``hub``, ``hf-cache``, ``import``, ``train``, ``finetune``, ``distill``) and what
    that kind has to say.
    """

    name: str
    revision: str
    files: tuple[FileRecord, ...] = ()
    refs: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    """ISO 8601, UTC."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def write(self, path: Path) -> None:
        """Replace ``path`` in one rename. Raises `Gpt2cliError`."""
        write_atomically(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")


def now() -> str:
    """The time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at ``path``; None when it is not one of ours, or damaged."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        raw = json.loads(path.read_bytes())
        refs, source = raw.get("refs", []), raw.get("source") or {}
        if raw["format"] != FORMAT or not isinstance(raw["name"], str) or not isinstance(refs, list):
            return None
        # NaN is no JSON, and could not be written again.
        json.dumps(source, allow_nan=False)
        return Manifest(
            name=raw["name"],
            revision=str(raw.get("revision", path.stem)),
            files=tuple(_file_record(entry) for entry in raw.get("files", ())),
            refs=tuple(str(ref) for ref in refs),
            source=source if isinstance(source, dict) else {"kind": str(source)},
            created=str(raw.get("created", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _file_record(entry: Any) -> FileRecord:
    name, size = str(entry["path"]), entry["size"]
    # What is not printable could not be a path, or would move a cursor.
    if "/" in name or "\\" in name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError(name)
    if type(size) is not int or not 0 <= size <= MAX_WHOLE:
        raise ValueError(size)
    return FileRecord(name, size, str(entry["sha256"]), str(entry.get("verified", "computed here")))
