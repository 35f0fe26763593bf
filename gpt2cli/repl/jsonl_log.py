"""Files of JSON lines that are only ever appended to, and survive what may happen to them.

A line is one ``os.write`` under ``O_APPEND`` and a lock, readable by its owner alone. A process that is
killed leaves at most the line that it was writing unfinished; the next line begins on its own, and
reading skips what is no JSON. JSON escapes all that is not ASCII: a file can be shown on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover
    # Windows: without locks, a line is still written whole.
    fcntl = None  # type: ignore[assignment]


def encode_line(value: Any) -> bytes:
    """``value`` as one line of ASCII."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def decode_lines(data: bytes) -> Iterator[Any]:
    """The value of each line; a ValueError in the place of one that is damaged."""
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            yield error if isinstance(error, ValueError) else ValueError("too deep")


def open_private(path: Path, flags: int = 0) -> int:
    """A descriptor of ``path`` for appending and reading, made with its folder for its owner alone.

    Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | flags, 0o600)


def append_lines(descriptor: int, data: bytes) -> None:
    """Append whole lines in one write; nothing, when not all of it can be written. Raises `OSError`.

    The caller holds the lock.
    """
    size = os.fstat(descriptor).st_size
    # The line of a process that was killed may have no end.
    torn = size > 0 and read_at(descriptor, 1, size - 1) != b"\n"
    whole = b"\n" + data if torn else data
    written = 0
    try:
        written = os.write(descriptor, whole)
        if written < len(whole):
            # What stopped the write is the error of the next one.
            written += os.write(descriptor, whole[written:])
        if written < len(whole):
            raise OSError("the disk took only a part")
    except OSError:
        if written:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
        raise


def read_at(descriptor: int, size: int, offset: int = 0) -> bytes:
    """At most ``size`` bytes from ``offset``. Raises `OSError`."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    parts, left = [], size
    while left > 0 and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """A descriptor of ``path`` as `open_private` has it, locked while the block runs; waits for the lock.

    Raises `OSError`.
    """
    descriptor = _locked_descriptor(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked_descriptor(path: Path) -> int:
    while True:
        descriptor = open_private(path)
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        same = False
        try:
            # Whoever had the lock may have put another file in its place, or removed it.
            same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            pass
        finally:
            if not same:
                os.close(descriptor)
        if same:
            return descriptor
