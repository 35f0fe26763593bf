"""What was typed, over all sessions: one JSON string a line, oldest first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpt2cli import paths
from gpt2cli.repl.jsonl_log import append_lines, decode_lines, encode_line, locked, read_at

MAX_BYTES = 4 * 2**20
"""Beyond it the older half is dropped."""
MAX_ENTRY = 256 * 2**10
"""Characters; a longer message is not kept."""


class History:
    """The lines typed in all sessions. Several processes may append to it at the same time.

    ``warn`` is called once when it cannot be written; the session goes on.
    """

    def __init__(self, path: Path | None = None, warn: Callable[[str], None] | None = None) -> None:
        self.path = path or paths.state_dir() / "history.jsonl"
        self._warn = warn

    def load(self) -> list[str]:
        """All entries, oldest first; an unreadable file has none, damaged lines are skipped."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - 2 * MAX_BYTES))
                data = file.read(2 * MAX_BYTES)
        except OSError:
            return []
        return [entry for entry in decode_lines(data) if isinstance(entry, str)]

    def append(self, text: str) -> None:
        """Add an entry."""
        if not text.strip() or len(text) > MAX_ENTRY:
            return
        try:
            with locked(self.path) as descriptor:
                append_lines(descriptor, encode_line(text))
                if os.fstat(descriptor).st_size > MAX_BYTES:
                    self._shorten(descriptor)
        except OSError as error:
            if self._warn is not None:
                self._warn(f"what you type is not kept in {self.path}: {error.strerror or error}")
                self._warn = None

    def _shorten(self, descriptor: int) -> None:
        """Put a file with the newest half in its place. Raises `OSError`."""
        size = os.fstat(descriptor).st_size
        data = read_at(descriptor, size, size - MAX_BYTES // 2)
        # The first line is cut in the middle.
        data = data[data.find(b"\n") + 1 :]
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".history-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise
