"""One thread for what an engine does while a person types: the latest job, and never two."""

from __future__ import annotations

import threading
from collections.abc import Callable

Wanted = Callable[[], bool]
"""Whether a job's result is still wanted; it asks at every step, and ends when it is not."""
Job = Callable[[Wanted], None]


class Worker:
    """Runs the last job it was given. A new one, and `stop`, make the one before it end at its next step.

    A job handles its own errors. All methods return at once, except for `pause` and `close`.
    """

    def __init__(self, name: str = "suggest") -> None:
        self._name = name
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._number = 0
        self._running = self._closed = False
        self._thread: threading.Thread | None = None

    def do(self, job: Job) -> None:
        """Run ``job`` as soon as the one that runs has ended; one that waits is forgotten."""
        with self._changed:
            if self._closed:
                return
            self._number += 1
            self._job = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def stop(self) -> None:
        """Have the job that runs end at its next step, and forget the one that waits."""
        with self._changed:
            self._number += 1
            self._job = None

    def pause(self) -> None:
        """`stop`, and wait until nothing runs: a step at most."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def close(self) -> None:
        """`pause`, and end the thread."""
        self.pause()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._closed)
                job, number = self._job, self._number
                if job is None:
                    return
                self._job, self._running = None, True
            try:
                job(self._wanted(number))
            finally:
                with self._changed:
                    self._running = False
                    self._changed.notify_all()

    def _wanted(self, number: int) -> Wanted:
        return lambda: self._number == number
