"""How far a job of many rows is: a bar on stderr where that is a terminal, and nothing elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, cast

from gpt2cli.terminal.progress import FRAME_EVERY_S, StderrText, seconds
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

RECENT_S = 30.0
"""Tokens a second, and the time that is left, are those of the last half minute."""


class RowsProgress:
    """A bar of rows, tokens a second and time left. Used as a context, it leaves no bar behind.

    Rows may be of very different lengths: the bar moves by what they cost, and says how many they are.
    """

    def __init__(
        self, terminal: Terminal, label: str, rows: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._terminal, self._clock, self._rows, self._label = terminal, clock, rows, label
        self._bar: Any = None
        self._task: Any = None
        self._drawn = 0.0
        self._recent: deque[tuple[float, int, int]] = deque()
        if terminal.stderr_is_terminal and not terminal.quiet and terminal.environ.get("TERM") != "dumb":
            self._bar = _bar(terminal)

    def __enter__(self) -> RowsProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def warn(self, line: str) -> None:
        """A warning, above the bar where there is one."""
        if self._task is None:
            self._terminal.warn(line)
        elif not self._terminal.quiet:
            from rich.text import Text

            style = "yellow" if self._terminal.styled else ""
            self._bar.console.print(Text(f"warning: {one_line(line)}", style=style))

    def move(self, done: int, failed: int, tokens: int, cost: int, cost_done: int) -> None:
        """``done`` rows are there, ``failed`` of them without an answer, and so many ``tokens`` drawn."""
        now = self._clock()
        if self._bar is None or now - self._drawn < FRAME_EVERY_S:
            return
        self._drawn = now
        self._recent.append((now, tokens, cost_done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RECENT_S:
            self._recent.popleft()
        text = f"{self._label}: {done:,} of {self._rows:,} rows"
        if failed:
            text += f", {failed:,} failed"
        if self._task is None:
            self._task = self._bar.add_task(text, total=max(1, cost), speed="")
            self._bar.start()
        self._bar.update(self._task, completed=cost_done, description=text, speed=self._speed(cost))
        self._bar.refresh()

    def _speed(self, cost: int) -> str:
        (then, tokens, done), (now, tokens_now, done_now) = self._recent[0], self._recent[-1]
        if now - then < FRAME_EVERY_S:
            return ""
        speed = f"{(tokens_now - tokens) / (now - then):,.0f} tokens/s"
        rate = (done_now - done) / (now - then)
        return f"{speed} · {seconds((cost - done_now) / rate)} left" if rate > 0 else speed


def _bar(terminal: Terminal) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(
        file=cast(IO[str], StderrText(terminal)),
        force_terminal=True,
        no_color=not terminal.styled,
        color_system="standard" if terminal.styled else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(min_width=4, ratio=1)),
        TextColumn("{task.fields[speed]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        auto_refresh=False,
        transient=True,
        expand=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
