"""Where rows go that come in their order: stdout, or a file that appears when it is whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from gpt2cli.errors import Gpt2cliError
from gpt2cli.jobs.rowfile import RowFile
from gpt2cli.terminal.streams import Terminal


class Rows:
    """Rows as they come. Until a file is whole its rows are in a hidden one beside it, so that a job can go
    on with them.
    """

    def __init__(self, terminal: Terminal, path: Path | None) -> None:
        self._terminal, self._path = terminal, path
        self._is_device = path is not None and path.exists() and not path.is_file()
        self._device: BinaryIO | None = None
        self._file: RowFile | None = None
        self.size = 0
        """Bytes written."""

    @property
    def partial(self) -> Path | None:
        """The hidden file, where there is one."""
        return None if self._path is None or self._is_device else partial_of(self._path)

    def begin(self, keep: int | None = None) -> bool:
        """Start anew, or after ``keep`` bytes that another run wrote; false if they are not there."""
        if self._path is None:
            return True
        if self.partial is None:
            try:
                self._device = self._path.open("ab")
            except OSError as error:
                raise self._failure(error) from None
            return keep is None
        if self._file is None:
            self._file = RowFile(self.partial)
        if keep is not None and self._file.size < keep:
            return False
        self.size = keep or 0
        self._file.truncate(self.size)
        return True

    def write(self, text: str) -> None:
        """Put out a row. Raises `Gpt2cliError`, `ReaderGone`."""
        data = text.encode("utf-8", "replace")
        if self._file is not None:
            self._file.append(data)
        elif self._device is not None:
            try:
                self._device.write(data)
            except OSError as error:
                raise self._failure(error) from None
        else:
            self._terminal.write(text)
        self.size += len(data)

    def flush(self) -> None:
        """Have everything on disk."""
        if self._file is not None:
            self._file.sync()
        elif self._device is not None:
            try:
                self._device.flush()
            except OSError as error:
                raise self._failure(error) from None

    def finish(self) -> None:
        """All rows are there."""
        self.flush()
        if self._device is not None:
            self._device.close()
        if self._file is None or self._path is None or self.partial is None:
            return
        # Windows renames no open file.
        self._file.close()
        try:
            os.replace(self.partial, self._path.resolve())
        except OSError as error:
            raise self._failure(error) from None

    def abandon(self, *, keep: bool) -> None:
        """No more rows come; ``keep`` what is there for another run."""
        if self._device is not None:
            with contextlib.suppress(OSError):
                self._device.close()
        if self._file is not None:
            self._file.close()
            if not keep and self.partial is not None:
                with contextlib.suppress(OSError):
                    self.partial.unlink()

    def _failure(self, error: OSError) -> Gpt2cliError:
        return Gpt2cliError(f"cannot write {self._path}: {error.strerror or error}")


def partial_of(path: Path) -> Path:
    """The hidden file beside ``path`` that holds its rows until all are there."""
    return path.resolve().parent / f".{path.name[:80]}.partial"
