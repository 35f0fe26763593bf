"""Several files at once: workers fetch, and the thread that called hears of it and reports."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2cli.errors import Unavailable
from gpt2cli.hub.download import Fetcher
from gpt2cli.hub.manifest import FileRecord
from gpt2cli.hub.remote import RemoteFile, Repository
from gpt2cli.hub.transport import RESUME_HINT, Hub, Policy

WORKERS = 4
REPORT_EVERY_S = 0.1
PATIENCE_S = 0.5
"""How long to wait for workers to end. One that waits for a silent server is left behind: it does no harm."""


def fetch_all(
    hub: Hub,
    repository: Repository,
    files: Sequence[RemoteFile],
    directory: Path,
    policy: Policy,
    report: Callable[[dict[str, Any]], None],
) -> list[FileRecord]:
    """Fetch ``files``, in their order as records. What the first worker to fail raises, this raises.

    A signal raises in this thread, and ends all; what has come stays. ``report`` is called from here.
    """
    stop = threading.Event()
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    have: dict[str, int] = {}
    fetcher = Fetcher(hub, repository, directory, policy, stop, have.__setitem__, said.put)
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in sorted(files, key=lambda f: f.size or 0, reverse=True):
        waiting.put(file)
    workers = [
        # Daemons: the end of the process does not wait for a server.
        threading.Thread(target=_work, args=(fetcher, waiting, said), name=f"fetch-{n}", daemon=True)
        for n in range(min(WORKERS, len(files)))
    ]
    try:
        for worker in workers:
            worker.start()
        records = _listen(said, len(files), have, report, policy.silence_s)
    finally:
        stop.set()
        deadline = time.monotonic() + PATIENCE_S
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(0.0, deadline - time.monotonic()))
    return [records[file.path] for file in files]


def _work(fetcher: Fetcher, waiting: queue.SimpleQueue[RemoteFile], said: queue.SimpleQueue[Any]) -> None:
    while not fetcher.stop.is_set():
        try:
            file = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            said.put(fetcher.fetch(file))
        except BaseException as error:
            said.put(error)
            return


def _listen(
    said: queue.SimpleQueue[Any],
    count: int,
    have: dict[str, int],
    report: Callable[[dict[str, Any]], None],
    silence_s: float,
) -> dict[str, FileRecord]:
    """Pass on what the workers say until all files are there. Raises what one raised, `Unavailable`."""
    records: dict[str, FileRecord] = {}
    reported, moved, before = 0.0, time.monotonic(), -1
    while len(records) < count:
        try:
            item = said.get(timeout=REPORT_EVERY_S)
        except queue.Empty:
            item = None
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, FileRecord):
            records[item.path] = item
        elif item is not None:
            report(item)
        clock, done = time.monotonic(), sum(list(have.values()))
        if item is not None or done != before:
            moved, before = clock, done
        elif clock - moved > silence_s:
            raise Unavailable(f"nothing has come for {silence_s:.0f} s", hint=RESUME_HINT)
        if clock - reported >= REPORT_EVERY_S or len(records) == count:
            report({"event": "progress", "bytes": done})
            reported = clock
    return records
