"""A real terminal for tests of `chat`: the program in a pty, its screen drawn by pyte."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte

COMMAND = (sys.executable, "-m", "gpt2cli", "chat")
PATIENCE_S = float(os.environ.get("GPT2CLI_TEST_PATIENCE") or 60.0)
"""For a busy machine; what is waited for usually comes within a second."""

ENTER, CTRL_C, CTRL_D, TAB, ESCAPE = "\r", "\x03", "\x04", "\t", "\x1b"
ALT_ENTER = "\x1b\r"
PASTE, PASTE_END = "\x1b[200~", "\x1b[201~"

_PROMPT_BEGINS, _PROMPT_ENDS = b"\x1b[?2004h", b"\x1b[?2004l"
_WHERE = b"\x1b[6n"


class ChatScreen:
    """A session on a terminal of its own. ``raw`` is every byte that the program wrote."""

    def __init__(
        self, *arguments: str | os.PathLike[str], columns: int = 80, rows: int = 24, **environ: str
    ) -> None:
        words = [os.fspath(argument) for argument in arguments]
        program, words = (words[0], words[1:]) if words[0].startswith("/") else (COMMAND[0], words)
        if program == COMMAND[0]:
            words = [*COMMAND[1:], *words]
        environment = {**os.environ, "TERM": "xterm-256color", **environ}
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(program, words, dimensions=(rows, columns), timeout=None, env=environment)
        self.child.delaybeforesend = None
        self.raw = b""

    @property
    def lines(self) -> list[str]:
        """The screen, line by line."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(self.lines)

    @property
    def bar(self) -> str:
        """The last line that has something: at a prompt, the status bar."""
        return next((line for line in reversed(self.lines) if line), "")

    @property
    def prompts(self) -> int:
        """How many prompts have come up: each switches bracketed paste on, and so does the session itself."""
        return self.raw.count(_PROMPT_BEGINS) - 1

    def pump(self, seconds: float) -> bool:
        """Take in what the program writes within ``seconds``; false when it has ended."""
        try:
            data = self.child.read_nonblocking(1 << 16, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        for _ in range(data.count(_WHERE)):
            self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        return True

    def wait(self, what: str | Callable[[], bool], patience: float = PATIENCE_S) -> None:
        """Wait until a text stands on the screen, or until a condition holds."""
        holds = what if callable(what) else lambda: what in self.text
        end = time.monotonic() + patience
        while not holds():
            if time.monotonic() > end or not self.pump(0.02):
                if holds():
                    return
                raise AssertionError(f"waited in vain for {what!r}; on the screen:\n{self.text}")

    def send(self, text: str) -> None:
        """Press keys."""
        self.child.send(text)

    def ask(self, text: str, patience: float = PATIENCE_S) -> str:
        """Type a line, wait for the next prompt; what was written in between, drawn."""
        prompts, before = self.prompts, len(self.raw)
        self.send(text + ENTER)
        self.wait(lambda: self.prompts > prompts, patience)
        self.settle()
        return drawn(self.raw[before:], self.screen.columns)

    def settle(self, seconds: float = 0.15) -> None:
        """Take in what comes until nothing comes any more."""
        before = -1
        while before != len(self.raw):
            before = len(self.raw)
            self.pump(seconds)

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal another size."""
        self.child.setwinsize(rows, columns)
        self.screen.resize(rows, columns)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        os.kill(self.child.pid, number)

    def kill_below(self, number: signal.Signals) -> None:
        """Send a signal to the one process that the program, a shell, has started."""
        pid = self.child.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[0]), number)

    @staticmethod
    def command() -> str:
        """The command, for a shell."""
        return " ".join(COMMAND)

    def leave(self, keys: str = CTRL_D) -> int:
        """Leave with ``keys``; the exit status, or minus the signal."""
        if keys:
            self.send(keys)
        return self.end()

    def end(self, patience: float = PATIENCE_S) -> int:
        """Wait for the program to end; its exit status, or minus the signal."""
        end = time.monotonic() + patience
        while self.pump(0.1):
            assert time.monotonic() < end, f"still there:\n{self.text}"
        self.child.wait()
        status: Any = self.child.exitstatus
        return int(status) if status is not None else -int(self.child.signalstatus or 0)


@contextmanager
def chat(*arguments: str | os.PathLike[str], ready: bool = True, **keywords: Any) -> Iterator[ChatScreen]:
    """A session whose prompt has come up, and with ``ready`` its model. The block's end ends it."""
    screen = ChatScreen(*arguments, **keywords)
    try:
        screen.wait(lambda: screen.prompts > 0)
        if ready:
            screen.wait(lambda: "loading" not in screen.bar and bool(re.search(r"\d+/\d+", screen.bar)))
        yield screen
    finally:
        screen.child.close(force=True)


def drawn(raw: bytes, columns: int) -> str:
    """Bytes as a terminal of any height shows them."""
    screen = pyte.Screen(columns, 400)
    pyte.ByteStream(screen).feed(raw)
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def trained_model() -> Path:
    """The built-in model: small, trained, always there."""
    from gpt2cli.hub.resolve import builtin_directory

    return builtin_directory()
