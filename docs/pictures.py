"""The pictures of the documents: real sessions in a terminal, as SVG. Needs what ``[test]`` installs.

    python docs/pictures.py [FOLDER]

A shell runs in a pty, what is typed is typed, and pyte draws the screen. The seeds are fixed, so that the
same model gives the same texts on every machine.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.style import Style
from rich.text import Text

from gpt2cli.terminal.canvas import draw_svg

WIDTH = 84
PROMPT = "$ "
PATIENCE_S = 120.0
KEY_S = 0.3
"""Between keys that a program has to answer."""
ANSWERED = "/help"
"""At the end of chat's status bar, which is there while it waits for a message."""

COLOURS = {
    "black": "#000000",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#dcdfe4",
    "brightblack": "#7f848e",
}
"""What a dark terminal makes of the names that pyte gives colours."""

STORY = """Once upon a time there was a little dog who lived in a small house by the sea.
Every morning he ran to the beach and looked for"""

Session = Callable[["Screen"], None]


class Screen:
    """A shell in a terminal of its own, in which ``gpt2cli`` is what this Python imports."""

    def __init__(self, home: Path, rows: int) -> None:
        command = home / "bin" / "gpt2cli"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m gpt2cli "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        ours = ("GPT2CLI_", "LINES", "COLUMNS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.home = home
        self.screen = pyte.Screen(WIDTH, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._child = pexpect.spawn(
            "sh",
            ["+m", "-i"],  # without job control, which would tell of every process that is paused
            dimensions=(rows, WIDTH),
            timeout=None,
            cwd=home,
            env={
                **kept,
                "PATH": f"{command.parent}:{os.environ['PATH']}",
                "GPT2CLI_HOME": str(home / "state"),
                "HF_HUB_CACHE": str(home / "hub"),
                "HF_HUB_OFFLINE": "1",
                "ENV": "/dev/null",
                "PS1": PROMPT,
                "TERM": "xterm-256color",
                "COLORTERM": "truecolor",
            },
        )
        self.wait(self.idle)

    def idle(self) -> bool:
        """Whether the shell waits for a command."""
        return self.lines[-1:] == [PROMPT.strip()]

    @property
    def lines(self) -> list[str]:
        """The screen down to its last line that is not empty."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(self.lines)

    def run(self, command: str) -> None:
        """Type a command and wait until it has ended."""
        self._child.send(f"{command}\r")
        self.wait(lambda: not self.idle())
        self.wait(self.idle)

    def type(self, text: str) -> None:
        """Press keys, and take in what is drawn at once."""
        self._child.send(text)
        self._pump(KEY_S)

    def wait(self, holds: Callable[[], bool]) -> None:
        """Take in what comes until something holds, and then what comes right after it."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError("\n".join(self.lines))
            self._pump(0.05)
        self._pump(KEY_S)

    def close(self) -> None:
        """End the shell and what runs in it."""
        self._child.close(force=True)

    def svg(self, title: str) -> str:
        """The screen as an SVG, without the prompt of a shell that waits."""
        count = len(self.lines) - self.idle()
        rows = [self._row(number) for number in range(count)]
        return draw_svg(rows, width=WIDTH, title=title, theme="dark")

    def _row(self, number: int) -> Text:
        row = self.screen.buffer[number]
        cells = [row[column] for column in range(WIDTH)]
        text = Text()
        for style, same in groupby(cells, style_of):
            text.append("".join(cell.data for cell in same), style)
        text.rstrip()
        return text

    def _pump(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                data = self._child.read_nonblocking(1 << 16, timeout=left)
            except (pexpect.TIMEOUT, pexpect.EOF):
                return
            self._stream.feed(data)
            for _ in range(data.count(b"\x1b[6n")):  # the program asks where the cursor is
                self._child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")


def style_of(cell: pyte.screens.Char) -> Style:
    """The look of a cell."""
    return Style(
        color=colour(cell.fg),
        bgcolor=colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def colour(name: str) -> str | None:
    """A colour of pyte's, which is a name or six hex digits, as rich has it."""
    if name == "default":
        return None
    return COLOURS.get(name) or COLOURS.get(name.removeprefix("bright")) or f"#{name}"


def generate(screen: Screen) -> None:
    """A story; in a pipe the same seed gives the same text, and nothing else."""
    screen.run('gpt2cli generate --seed 3 --max-new-tokens 70 "Once upon a time"')
    screen.run('gpt2cli generate --seed 3 --max-new-tokens 16 -q "Once upon a time" | tr a-z A-Z')


def inspect(screen: Screen) -> None:
    """A text in the colours of its surprisal, and how its next token is drawn."""
    screen.run('gpt2cli inspect "Once upon a time there was a submarine. It lived in a pond."')
    screen.run('gpt2cli inspect -q --explain --temp 0.7 --top-k 6 --top-p 0.9 "The dog was"')


def chat(screen: Screen) -> None:
    """Turns of a story, the last one's tokens coloured, and the tree of turns."""
    screen.type("gpt2cli chat --seed 3 --max-new-tokens 40\r")
    answered(screen)
    for line in ("Once upon a time", "/undo", "In a small house", "/tokens", "/tree"):
        screen.type(f"{line}\r")
        answered(screen)
    screen.type("/con")


def write(screen: Screen) -> None:
    """A text that goes on, suggestions beneath it, and one of them chosen."""
    (screen.home / "story.txt").write_text(STORY, "utf-8")
    screen.type("gpt2cli write --seed 5 story.txt\r")
    screen.wait(lambda: "Tab suggests" in screen.text and "loading" not in screen.text)
    screen.type("\x1b[1;5F")
    for taken in ("\r", ""):
        screen.type("\t")
        screen.wait(lambda: "  3 " in screen.text and "drawing" not in screen.text)
        screen.type(taken or "\x1b[B")


def answered(screen: Screen) -> None:
    """Wait for chat's prompt."""
    screen.wait(lambda: bool(screen.lines) and screen.lines[-1].endswith(ANSWERED))


SESSIONS: dict[str, tuple[Session, int]] = {
    "generate": (generate, 16),
    "inspect": (inspect, 30),
    "chat": (chat, 30),
    "write": (write, 18),
}
"""Each picture: what is typed, and the rows of the terminal."""


def picture(name: str) -> str:
    """One of `SESSIONS` as an SVG."""
    session, rows = SESSIONS[name]
    with tempfile.TemporaryDirectory() as home:
        screen = Screen(Path(home), rows)
        try:
            session(screen)
            return screen.svg(f"gpt2cli {name}")
        finally:
            screen.close()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    for name in SESSIONS:
        (folder / f"{name}.svg").write_text(picture(name), "utf-8")


if __name__ == "__main__":
    main()
