"""The socket that requests come to: a port of this machine, or a file that only its user reaches."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from pathlib import Path

from gpt2cli.errors import Gpt2cliError, UsageError

BACKLOG = 256


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_port(host: str, port: int) -> socket.socket:
    """Listen at an address. Raises `Gpt2cliError`, `UsageError`."""
    if host.lower() == "localhost":
        host = "127.0.0.1"
    try:
        kind, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    # With its protocol: only so does asyncio turn off the delay of small packets.
    listener = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Gpt2cliError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another program may be there; try --port 0, or another number",
        ) from None
    listener.setblocking(False)
    return listener


def open_file(path: Path) -> socket.socket:
    """Listen at a socket file, which is made for its user alone. Raises `Gpt2cliError`, `UsageError`.

    One that is left of a server that is gone is replaced.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("--uds: there are no socket files here")
    _check_folder(path)
    if len(os.fsencode(path)) > 100:
        raise UsageError(f"--uds {path}: the path is too long for a socket")
    if path.is_socket():
        if _answers(path):
            raise Gpt2cliError(f"{path}: a server is there already")
        path.unlink(missing_ok=True)
    elif path.exists():
        raise UsageError(f"--uds {path}: there is a file that is no socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Gpt2cliError(f"cannot make {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def file_number(path: Path) -> tuple[int, int]:
    """Which file is at a path now."""
    found = path.stat()
    return found.st_dev, found.st_ino


def remove_file(path: Path, number: tuple[int, int]) -> None:
    """The server ends: nothing is left of its socket, unless another one's is in its place."""
    with contextlib.suppress(OSError):
        if file_number(path) == number:
            path.unlink()


def _check_folder(path: Path) -> None:
    """The folder is the user's, and nobody else can put another socket into the place of ours."""
    folder = path.parent
    try:
        found = folder.stat()
    except OSError as error:
        raise UsageError(f"--uds {path}: {folder}: {error.strerror or error}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"--uds {path}: {folder} is no folder")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"--uds {path}: {folder} is not yours alone to write to",
            hint="make a folder of your own: mkdir -m 700 ~/.gpt2cli",
        )


def _answers(path: Path) -> bool:
    """Whether a server is there, though it may be too busy to answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
