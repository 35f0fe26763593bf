"""Work in a thread while the user types: the one thread of the project."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.02


class Loader(Generic[T]):
    """Runs ``work`` in a thread; ``result`` is what it returned, or raises what it raised."""

    def __init__(self, work: Callable[[], T], then: Callable[[], None] | None = None) -> None:
        self._work, self._then = work, then
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Begin; later calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._done.is_set()

    @property
    def running(self) -> bool:
        """Whether the thread is at work; one that has its result is waited for."""
        if self.done:
            self.join()
        return self._thread.is_alive()

    @property
    def error(self) -> BaseException | None:
        """What the work raised."""
        return self._error

    def wait(self, cancelled: Callable[[], bool]) -> bool:
        """Wait until the work has ended, or, false, until ``cancelled`` says so. Signals are handled."""
        self.start()
        while not self._done.wait(POLL_S):
            if cancelled():
                return False
        return True

    def join(self) -> None:
        """Wait for the thread to be gone, if it was ever started."""
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> T:
        """What the work returned. Raises what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        self._done.set()
        if self._then is not None:
            self._then()
