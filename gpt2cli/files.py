"""Writing a file whole or not at all, readable by whom the umask says."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2cli.errors import Gpt2cliError, UsageError

try:
    import fcntl
except ImportError:  # pragma: no cover
    # Windows: without locks.
    fcntl = None  # type: ignore[assignment]


def check_writable(path: Path) -> None:
    """Raise `UsageError` when ``path`` cannot be written: before work is done for nothing."""
    parent = path.parent
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory")
    if not parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {parent}")
    if not os.access(path if path.exists() and not path.is_file() else parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` with ``content`` in one rename; a device or a pipe is written to as it is.

    Raises `Gpt2cliError`.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    try:
        if path.exists() and (not path.is_file() or str(path).startswith(("/dev/", "/proc/"))):
            # /dev/stdout may lead to a file that the shell appends to.
            with path.open("ab") as device:
                device.write(data)
            return
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise Gpt2cliError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` in one rename when the block ends well.

    It is on the disk by then, and has the mode of what was there. Raises `OSError`.
    """
    target = path.resolve()
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:80]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def move_new(path: Path, target: Path) -> None:
    """Rename a file, never over another one. Raises `OSError`."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        if target.exists():
            raise FileExistsError(target) from None
        os.rename(path, target)
        return
    os.unlink(path)


def as_created(path: Path) -> None:
    """Give a file or directory that was made for its owner alone the mode of one that is newly created.

    So safetensors writes its files, and `tempfile` makes its files and directories; who may read a store
    is the umask's business. Raises `OSError`.
    """
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def try_lock(descriptor: int) -> bool:
    """Lock the file for this process, until it is closed; false when another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return True
    return True
