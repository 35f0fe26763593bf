"""Where a long job stands, kept on disk so that it can go on after any end. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError
from gpt2cli.files import write_atomically

FIRST_AFTER_S, SAVE_EVERY_S = 0.3, 2.0
FORMAT = 1


def fingerprint(path: Path) -> list[Any]:
    """What tells a file from a changed one without reading it."""
    found = path.resolve().stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


class Progress:
    """The state of one job, told from others by ``key``; states and keys are JSON.

    A state that cannot be written or read is nobody's error: the job then begins anew.
    """

    def __init__(self, key: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._path = paths.cache_dir() / "score" / f"{name}.json"
        self._clock = clock
        self._due = clock() + FIRST_AFTER_S

    def load(self) -> dict[str, Any] | None:
        """The state saved last, if there is one."""
        try:
            state = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def save(self, state: Callable[[], Mapping[str, Any]], *, now: bool = False) -> None:
        """Keep a state, not more often than every two seconds unless ``now``."""
        if not now and self._clock() < self._due:
            return
        self._due = self._clock() + SAVE_EVERY_S
        with contextlib.suppress(OSError, Gpt2cliError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(state()))

    def remove(self) -> None:
        """The job is done, or begins anew."""
        with contextlib.suppress(OSError):
            self._path.unlink()
