"""How far a transfer is, on stderr: one bar on a terminal, a line now and then where there is none.

A display takes the events of a pull (`gpt2cli.hub.pull`) as they come. With ``--quiet`` it shows
nothing; with ``TERM=dumb`` lines; with ``NO_COLOR`` a bar without colours.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Protocol, cast

from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import shown_bytes
from gpt2cli.text.sanitize import one_line

LINE_EVERY_S = 10.0
FRAME_EVERY_S = 0.1
SHOWN_AFTER_S = 1.0


class Meter(Protocol):
    """What shows the state of a transfer."""

    def start(self, label: str, total: int, present: int) -> None:
        """A transfer begins; ``present`` of its bytes are there already."""
        ...

    def move(self, done: int) -> None:
        """``done`` bytes are there now."""
        ...

    def say(self, line: str) -> None:
        """Something worth a line."""
        ...

    def stop(self) -> None:
        """Leave the terminal as it was."""
        ...


class PullProgress:
    """The display of one pull; call it with each event. Used as a context, it leaves no bar behind."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._meter = make_meter(terminal)
        self._started = False

    def __enter__(self) -> PullProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._meter.start(one_line(str(event["model"])), int(event["total"]), int(event["present"]))
            self._started = True
        elif kind == "progress" and self._started:
            self._meter.move(int(event["bytes"]))
        elif line := _line(event):
            self._meter.say(one_line(line))


class ConversionProgress:
    """The display of a conversion of weights; call it with the bytes done and all of them.

    What takes less than a second is not worth a sign. Used as a context, it leaves no bar behind.
    """

    def __init__(self, terminal: Terminal, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._model, self._clock = terminal, model, clock
        self._begun = clock()
        self._meter: Meter | None = None

    def __enter__(self) -> ConversionProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._meter is not None:
            self._meter.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._meter is None and self._clock() - self._begun >= SHOWN_AFTER_S and done < total:
            self._meter = make_meter(self._terminal, self._clock)
            self._meter.start(f"{one_line(self._model)}: converting weights, once", total, 0)
        if self._meter is not None:
            self._meter.move(done)


def _line(event: Mapping[str, Any]) -> str | None:
    match event["event"]:
        case "wait":
            return f"{event['model']}: another process is pulling it; waiting"
        case "retry":
            return f"{event['reason']}; again in {event['wait_s']:.0f} s"
        case "rejected":
            return f"{event['file']}: {event['reason']}; dropped"
        case "convert":
            return f"converting {', '.join(event['files'])} to safetensors"
    return None


def make_meter(terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> Meter:
    """The meter that fits the terminal."""
    if terminal.stderr_is_terminal and not terminal.quiet and terminal.environ.get("TERM") != "dumb":
        return Bar(terminal, clock)
    return Lines(terminal, clock)


class Lines:
    """A line every ten seconds, and one at the end. ``Terminal.note`` knows of ``--quiet``."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._label, self._total, self._present = "", 0, 0
        self._begun = self._said = 0.0

    def start(self, label: str, total: int, present: int) -> None:
        self._label, self._total, self._present = label, total, present
        self._begun = self._said = self._clock()
        there = f", {shown_bytes(present)} of it already there" if present else ""
        self._terminal.note(f"{label}: {shown_bytes(total)}{there}")

    def move(self, done: int) -> None:
        now = self._clock()
        if now - self._said < LINE_EVERY_S or done >= self._total:
            return
        self._said = now
        rate = max(0, done - self._present) / (now - self._begun)
        left = f", {seconds((self._total - done) / rate)} left" if rate > 0 else ""
        self._terminal.note(
            f"{self._label}: {shown_bytes(done)} of {shown_bytes(self._total)}, {shown_bytes(rate)}/s{left}"
        )

    def say(self, line: str) -> None:
        self._terminal.note(line)

    def stop(self) -> None:
        pass


class Bar:
    """rich's bar: bytes, rate, time left. Frames are drawn by who calls, not by a thread."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._terminal, self._clock, self._drawn = terminal, clock, 0.0
        console = Console(
            file=cast(IO[str], StderrText(terminal)),
            force_terminal=True,
            no_color=not terminal.styled,
            color_system="standard" if terminal.styled else None,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None

    def start(self, label: str, total: int, present: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        # What is there already says nothing of the rate.
        self._task = self._progress.add_task(label, total=total, completed=present)
        self._progress.start()

    def move(self, done: int) -> None:
        if self._task is None:
            return
        self._progress.update(self._task, completed=done)
        now = self._clock()
        if now - self._drawn >= FRAME_EVERY_S:
            self._progress.refresh()
            self._drawn = now

    def say(self, line: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(line, style="dim" if self._terminal.styled else ""))

    def stop(self) -> None:
        self._progress.stop()


class StderrText(io.TextIOBase):
    """The terminal's stderr as the text file that rich writes to."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def write(self, text: str) -> int:
        self._terminal.write_stderr(text)
        return len(text)

    def isatty(self) -> bool:
        return self._terminal.stderr_is_terminal

    def writable(self) -> bool:
        return True


def seconds(span: float) -> str:
    """A span of time as people read it."""
    whole = int(span)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
