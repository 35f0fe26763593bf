"""SIGINT and SIGTERM: what happens to the text so far."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gpt2cli.errors import Interrupted, Signalled, Terminated

_KINDS: dict[int, type[Signalled]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}


class Signals:
    """While entered, a signal raises `Interrupted` or `Terminated` where the program stands.

    Once there is text to lose, ``soften`` makes the first signal call a function instead, which lets
    the program end by itself; ``received`` then says how. A second signal always raises.
    """

    def __init__(self) -> None:
        self.received: type[Signalled] | None = None
        self._soft: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def soften(self, stop: Callable[[], None] | None) -> None:
        """Call ``stop`` on the first signal instead of raising; None raises again."""
        self._soft = stop

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a block run to its end before the first signal raises: an import must not be torn."""
        self.soften(lambda: None)
        try:
            yield
        finally:
            self.soften(None)
        if self.received is not None:
            raise self.received

    def __enter__(self) -> Signals:
        try:
            for number in _KINDS:
                # Who started the program to be left alone, with & in a script, is obeyed.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            # Not the main thread: signals are somebody else's.
            self._previous.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, _KINDS[number]
        if first and self._soft is not None:
            self._soft()
            return
        raise self.received(signal.Signals(number).name)
