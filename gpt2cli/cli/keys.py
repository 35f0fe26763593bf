"""Files of API keys: those that `serve` answers to, and the one that a server is sent."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from gpt2cli.errors import UsageError
from gpt2cli.terminal.streams import Terminal

MAX_KEY_FILE = 2**20
_COMMENT = re.compile(r"(?:^|\s)#.*")


def read_key_file(terminal: Terminal, path: Path) -> list[str]:
    """The keys of a file, at least one, one a line; warns if others can read it. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
        others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_KEY_FILE:
        raise UsageError(f"{path}: it is larger than {MAX_KEY_FILE} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: it is no text") from None
    # A # within a key belongs to it.
    lines = (_COMMENT.sub("", line).strip() for line in text.splitlines())
    keys = list(dict.fromkeys(line for line in lines if line))
    if not keys:
        raise UsageError(f"{path}: there is no key in it")
    if others:
        terminal.warn(f"{path} can be read by other users of this machine")
    return keys
