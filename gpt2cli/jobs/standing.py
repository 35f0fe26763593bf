"""Where a job stands that takes its rows in their order: in a manifest beside what it has written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2cli.errors import Gpt2cliError
from gpt2cli.jobs.manifest import Manifest, read_manifest, remove_manifest, write_manifest

FIRST_AFTER_S, SAVE_EVERY_S = 0.3, 2.0


def fingerprint(path: Path) -> list[Any]:
    """What tells a file from a changed one without reading it."""
    found = path.resolve().stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


class Standing:
    """The state of the job that ``manifest`` describes, kept beside ``path``; states are JSON.

    A state that cannot be written or read, or is of another job, is nobody's error: the job then begins anew.
    """

    def __init__(self, path: Path, manifest: Manifest, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._manifest, self._clock = path, manifest.normal(), clock
        self._due = clock() + FIRST_AFTER_S

    def load(self) -> dict[str, Any] | None:
        """The state saved last, if there is one."""
        try:
            earlier = read_manifest(self._path)
            if earlier is None or not earlier.state:
                return None
            self._manifest.check_against(earlier, self._path)
        except Gpt2cliError:
            return None
        return dict(earlier.state)

    def save(self, state: Callable[[], Mapping[str, Any]], *, now: bool = False) -> None:
        """Keep a state, not more often than every two seconds unless ``now``."""
        if not now and self._clock() < self._due:
            return
        self._due = self._clock() + SAVE_EVERY_S
        with contextlib.suppress(OSError, Gpt2cliError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_manifest(self._path, replace(self._manifest, state=dict(state())))

    def remove(self) -> None:
        """The job is done, or begins anew."""
        remove_manifest(self._path)
