"""A file of rows, a line each, that grows while a job runs and survives its end at any moment."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import replacing, try_lock

BLOCK_BYTES = 2**20
SYNC_EVERY_S = 5.0


class RowFile:
    """A file that one process appends whole lines to. What is torn at its end is dropped when it is opened.

    A line that cannot be written whole is not written at all: the file ends with the one before.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``, made where it is not there, for this process alone. Raises `Gpt2cliError`."""
        self.path, self._target = path, path.resolve()
        try:
            self._descriptor = self._open_locked()
            self._drop_torn()
        except OSError as error:
            raise self._failure(error) from None
        self._synced = time.monotonic()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return os.fstat(self._descriptor).st_size

    def lines(self) -> Iterator[bytes]:
        """The lines that are there, without their ends."""
        rest = b""
        for block in self._blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from whole

    def append(self, data: bytes) -> None:
        """Add whole lines. Raises `Gpt2cliError`."""
        size = self.size
        written = 0
        try:
            while written < len(data):
                # What stops one write is the error of the next.
                written += os.write(self._descriptor, data[written:])
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                self.sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise self._failure(error) from None

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Drop the lines that are not ``wanted``, all of them or none. Raises `Gpt2cliError`."""
        try:
            with replacing(self._target) as file:
                file.writelines(line + b"\n" for line in self.lines() if wanted(line))
                if os.name == "nt":  # pragma: no cover
                    # It puts no file in the place of an open one.
                    os.close(self._descriptor)
            if os.name != "nt":
                os.close(self._descriptor)
            self._descriptor = self._open_locked()
        except OSError as error:
            raise self._failure(error) from None

    def truncate(self, size: int) -> None:
        """Drop what comes after ``size`` bytes. Raises `Gpt2cliError`."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failure(error) from None

    def sync(self) -> None:
        """Have everything on the disk. Raises `Gpt2cliError`."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure(error) from None
        self._synced = time.monotonic()

    def close(self) -> None:
        """Let go of the file, and of its lock."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _open_locked(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        while True:
            descriptor = os.open(self._target, flags | getattr(os, "O_BINARY", 0), 0o666)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise UsageError(f"{self.path}: it is no regular file, so a job cannot go on with it")
            if not try_lock(descriptor):
                os.close(descriptor)
                raise Gpt2cliError(
                    f"{self.path}: another process is writing it", hint="wait for it, or give another file"
                )
            with contextlib.suppress(FileNotFoundError):
                # Whoever had the lock may have put another file in its place.
                if os.path.samestat(os.fstat(descriptor), os.stat(self._target)):
                    return descriptor
            os.close(descriptor)

    def _drop_torn(self) -> None:
        size = end = self.size
        while end > 0:
            begin = max(0, end - BLOCK_BYTES)
            os.lseek(self._descriptor, begin, os.SEEK_SET)
            at = os.read(self._descriptor, end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._descriptor, end)

    def _blocks(self) -> Iterator[bytes]:
        at = 0
        try:
            while True:
                os.lseek(self._descriptor, at, os.SEEK_SET)
                block = os.read(self._descriptor, BLOCK_BYTES)
                if not block:
                    return
                at += len(block)
                yield block
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> Gpt2cliError:
        return Gpt2cliError(
            f"cannot write {self.path}: {error.strerror or error}",
            hint="what is done is kept: the same command goes on once there is room",
        )
