"""What the session writes: everything that is not the prompt itself, all of it sanitised."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from gpt2cli.errors import Gpt2cliError
from gpt2cli.repl.text_layout import Flow, wrapped
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import Sanitizer, one_line, sanitize

DIM, BOLD, RED, YELLOW = "2", "1", "1;31", "33"


class View:
    """The session's screen, from top to bottom: nothing that stands there is drawn again.

    Notes and errors go to the same terminal as the text: who chats looks at one screen.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.styled = terminal.styled
        self._cleaner, self._flow = Sanitizer(), Flow()
        self._can_move = terminal.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._at_start = True
        self._live = False

    @property
    def width(self) -> int:
        """Columns of the terminal as it is now."""
        try:
            return os.get_terminal_size(1).columns or 80
        except OSError:
            return 80

    def begin(self) -> None:
        """An answer comes."""
        self._cleaner, self._flow, self._at_start = Sanitizer(), Flow(), True

    def more(self, text: str) -> None:
        """More of the answer, as it was generated."""
        text = self._cleaner.push(text)
        if text:
            self._terminal.write(self._flow.push(text, self.width) if self._can_move else text)
            self._at_start = text.endswith("\n")

    def end(self) -> None:
        """The answer is over: what comes next stands on a line of its own."""
        if not self._at_start:
            self._terminal.write("\n")
        self._at_start = True

    def text(self, text: str, style: str = "") -> None:
        """A text, broken between words, with an end of line."""
        text = sanitize(text).removesuffix("\n")
        self._write(Flow().push(text, self.width) if self._can_move else text, style)

    def lines(self, lines: Iterable[str], style: str = "") -> None:
        """Lines that are already safe and fit."""
        self._write("\n".join(lines), style)

    def raw(self, text: str) -> None:
        """What is already safe and styled, with an end of line."""
        self.clear_live()
        self._terminal.write(text)

    def note(self, text: str) -> None:
        """A dim remark, between words broken to the width."""
        self._write("\n".join(wrapped(text, self.width)), DIM)

    def warn(self, text: str) -> None:
        """What the user should know."""
        self.text(f"warning: {one_line(text)}", YELLOW)

    def error(self, error: BaseException) -> None:
        """What went wrong in one line, and what to do in the next."""
        said = str(error) if isinstance(error, Gpt2cliError) else _described(error)
        self.text(f"error: {one_line(said)}", RED)
        hint = getattr(error, "hint", None)
        if hint:
            self.text(f"hint: {one_line(str(hint))}", DIM)

    def live(self, text: str) -> None:
        """A line that the next one replaces, where lines can be replaced."""
        if self._can_move:
            self._terminal.write(f"\r\x1b[K{self.styled_text(one_line(text)[: self.width - 1], DIM)}")
            self._live = True

    def styled_text(self, text: str, style: str) -> str:
        """``text`` in a style, where styles are wanted."""
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self.styled else text

    def rows(self, rows: Sequence[tuple[str, str]], *, gap: int = 2) -> None:
        """Two columns: names, and what they mean, broken to the width."""
        names = [one_line(name) for name, _ in rows]
        column = max(map(len, names), default=0) + gap
        lines: list[str] = []
        for name, (_, text) in zip(names, rows, strict=True):
            if column > self.width // 2:
                lines += [name, *(f"  {line}" for line in wrapped(text, self.width - 2))]
            else:
                first, *rest = wrapped(text, self.width - column)
                lines += [name.ljust(column) + first, *(" " * column + line for line in rest)]
        self.lines(line.rstrip() for line in lines)

    def rows_of_two(self, rows: Sequence[tuple[str, str]]) -> None:
        """As `rows`, two in a line where the terminal is wide enough."""
        names = max(len(name) for name, _ in rows) + 1
        texts = max(len(text) for _, text in rows)
        if 2 * (names + texts) + 2 > self.width:
            self.rows(rows)
            return
        half = (len(rows) + 1) // 2
        cells = [name.ljust(names) + text.ljust(texts) for name, text in rows]
        cells.append("")
        self.lines(
            f"{left}  {right}".rstrip() for left, right in zip(cells[:half], cells[half:], strict=False)
        )

    def _write(self, text: str, style: str) -> None:
        # What is said while an answer comes does not stand in its line.
        self.end()
        self.clear_live()
        self._terminal.write(self.styled_text(text, style) + "\n")

    def clear_live(self) -> None:
        """Take the `live` line away."""
        if self._live:
            self._terminal.write("\r\x1b[K")
            self._live = False


def _described(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
