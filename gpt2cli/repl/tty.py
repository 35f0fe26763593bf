"""The terminal between prompts: its attributes, its signals, and that all is as it was at the end.

While an answer streams, keys are kept for the next prompt instead of being echoed into the text;
Ctrl-C still is a signal. prompt_toolkit sets raw mode for the time of a prompt and comes back to this.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from gpt2cli.errors import Gpt2cliError, Terminated
from gpt2cli.terminal.streams import Terminal

try:
    import termios
except ImportError:  # Windows: prompt_toolkit does all of it there.
    termios = None  # type: ignore[assignment]

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_SHOW_CURSOR, _PLAIN = "\x1b[?25h", "\x1b[0m"


class Tty:
    """While entered, the terminal is the session's; afterwards its attributes are what they were.

    SIGINT calls what `interruptible` names, else it is remembered in ``interrupted``. The first of SIGTERM,
    SIGHUP and SIGQUIT raises `Terminated` where the program stands, or calls what `ending_with` names;
    later ones change nothing. SIGTSTP gives the terminal back for as long as the program is stopped.
    """

    def __init__(self, terminal: Terminal, descriptor: int = 0) -> None:
        self._terminal = terminal
        self._descriptor = descriptor
        self._original: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._on_interrupt: Callable[[], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self.interrupted = False
        self.ended = False

    def __enter__(self) -> Tty:
        numbers = {signal.SIGINT: self._interrupt, **dict.fromkeys(ENDING, self._end)}
        if hasattr(signal, "SIGTSTP"):
            numbers[signal.SIGTSTP] = self._stop
        for number, handler in numbers.items():
            self._handlers[number] = signal.signal(number, handler)
        if termios is not None:
            with contextlib.suppress(termios.error):
                self._original = termios.tcgetattr(self._descriptor)
        self._take()
        return self

    def __exit__(self, *exc: object) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def interruptible(self, stop: Callable[[], None]) -> Iterator[None]:
        """SIGINT calls ``stop``, as often as it comes."""
        self._on_interrupt = stop
        try:
            yield
        finally:
            self._on_interrupt = None

    @contextlib.contextmanager
    def ending_with(self, end: Callable[[], None]) -> Iterator[None]:
        """A signal to end calls ``end``; `Terminated` is raised at the end of the block.

        An event loop swallows what is raised in one of its callbacks.
        """
        self._on_end = end
        try:
            yield
        finally:
            self._on_end = None
        if self.ended:
            raise Terminated

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """The terminal as it was before, for another program."""
        self._give_back()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        """Keys are neither echoed nor held back until Enter; Ctrl-C discards nothing that was written."""
        if self._original is not None:
            mode: list[Any] = [list(part) if isinstance(part, list) else part for part in self._original]
            mode[0] &= ~termios.ICRNL
            mode[3] = mode[3] & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.NOFLSH
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            # Ctrl-\ and Ctrl-Z wait for the next prompt too.
            mode[6][termios.VQUIT] = mode[6][termios.VSUSP] = os.fpathconf(self._descriptor, "PC_VDISABLE")
            self._set(mode)
        self._put(_PASTE_ON)

    def _give_back(self) -> None:
        self._put(_PASTE_OFF + _SHOW_CURSOR + _PLAIN)
        if self._original is not None:
            self._set(self._original)

    def _set(self, mode: list[Any]) -> None:
        # The terminal may be gone.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)

    def _put(self, codes: str) -> None:
        """Control codes, where the terminal knows them."""
        if self._terminal.environ.get("TERM", "dumb") in ("dumb", "unknown"):
            return
        with contextlib.suppress(Gpt2cliError):
            self._terminal.write(codes)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if self._on_interrupt is not None:
            self._on_interrupt()

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.ended:
            return
        self.ended = True
        if self._on_end is None:
            raise Terminated(signal.Signals(number).name)
        self._on_end()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = None
        if termios is not None and self._original is not None:
            with contextlib.suppress(termios.error):
                now = termios.tcgetattr(self._descriptor)
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here again when somebody continues us.
        signal.signal(number, self._stop)
        if now is not None:
            self._set(now)
        self._put(_PASTE_ON)
