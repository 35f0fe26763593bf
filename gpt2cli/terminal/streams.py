"""The outside world of one run: standard streams, what they are, and the environment.

Data goes to stdout as UTF-8, everything else to stderr. Bytes are written without a buffer of our
own, so that nothing is left to fail when the interpreter exits.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gpt2cli.errors import Gpt2cliError, ReaderGone, UsageError
from gpt2cli.terminal.signals import Signals
from gpt2cli.text.sanitize import one_line, sanitize

PIECE_BYTES = 4096
"""PIPE_BUF: a pipe that is ready takes as much without blocking."""
READY_EVERY_S = 0.25
SIGNAL_PATIENCE_S = 2.0

_DIM, _RED, _YELLOW, _PLAIN = "\x1b[2m", "\x1b[1;31m", "\x1b[33m", "\x1b[0m"
_CLEAR = "\r\x1b[K"


class Terminal:
    """Three streams (binary, or None when closed), the environment, and the signals of this run."""

    def __init__(self, stdin: Any, stdout: Any, stderr: Any, environ: Mapping[str, str]) -> None:
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self.environ = environ
        self.quiet = False
        self._live = False
        self.signals = Signals()

    @classmethod
    def of_process(cls) -> Terminal:
        """The streams this process was started with."""
        _reserve_standard_descriptors()
        return cls(_binary(sys.stdin), _binary(sys.stdout), _binary(sys.stderr), os.environ)

    @property
    def stdin_is_terminal(self) -> bool:
        """Whether a person types at stdin."""
        return _is_terminal(self._stdin)

    @property
    def stdout_is_terminal(self) -> bool:
        """Whether a person reads stdout."""
        return _is_terminal(self._stdout)

    @property
    def stderr_is_terminal(self) -> bool:
        """Whether a person reads stderr."""
        return _is_terminal(self._stderr)

    @property
    def styled(self) -> bool:
        """Whether the environment allows colours and the like on a terminal."""
        return not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"

    def read_stdin(self, limit: int) -> bytes:
        """At most ``limit`` bytes of stdin; none when it is closed. Raises `Gpt2cliError`."""
        if self._stdin is None:
            return b""
        data = b""
        try:
            while len(data) < limit:
                more = self._stdin.read(limit - len(data))
                if more is None:
                    # A descriptor that does not block, and has nothing yet.
                    select.select([self._stdin], [], [])
                    continue
                if not more:
                    break
                data += more
        except OSError as error:
            raise Gpt2cliError(f"cannot read standard input: {error.strerror or error}") from None
        return data

    def lines(self, limit: int) -> Iterator[bytes]:
        """Each line of stdin as it comes, without its end. Raises `Gpt2cliError`, also for one of more
        than ``limit`` bytes.
        """
        line = b""
        while self._stdin is not None:
            try:
                more = self._stdin.readline(limit + 2 - len(line))
            except OSError as error:
                raise Gpt2cliError(f"cannot read standard input: {error.strerror or error}") from None
            if more is None:
                # A descriptor that does not block, and has nothing yet.
                select.select([self._stdin], [], [])
                continue
            line += more
            if len(line.rstrip(b"\r\n")) > limit:
                raise UsageError(f"a line of standard input is longer than {limit >> 20} MiB")
            if more and not line.endswith(b"\n"):
                continue
            if not line:
                return
            yield line.removesuffix(b"\n").removesuffix(b"\r")
            line = b""

    def ask(self, question: str) -> bool:
        """Put a yes-or-no question on stderr and read the answer; no is what is not ``y`` or ``yes``.

        Raises `UsageError` where nobody can be asked.
        """
        return (self.ask_text(f"{question} [y/N]") or "").lower() in ("y", "yes")

    def ask_text(self, question: str) -> str | None:
        """Put a question on stderr and read the answer, without white space around it; None where stdin ends.

        Raises `UsageError` where nobody can be asked.
        """
        if not (self.stdin_is_terminal and self.stderr_is_terminal):
            raise UsageError("there is no terminal to ask on")
        self.write_stderr(f"{one_line(question)} ")
        try:
            answer: bytes = self._stdin.readline(1000)
        except OSError as error:
            raise Gpt2cliError(f"cannot read standard input: {error.strerror or error}") from None
        if not answer:
            self.write_stderr("\n")
            return None
        return answer.decode("utf-8", "replace").strip()

    @property
    def has_stdout(self) -> bool:
        """Whether there is a stdout to write to."""
        return self._stdout is not None

    def check_stdout(self) -> None:
        """Raise `Gpt2cliError` when stdout is closed: before work is done for nothing."""
        if not self.has_stdout:
            raise Gpt2cliError("standard output is closed", hint="write to a file with --output FILE")

    def write(self, text: str) -> None:
        """Put ``text`` on stdout, at once. Raises `ReaderGone`, `Gpt2cliError`."""
        self.check_stdout()
        try:
            self._write_all(self._stdout, text.encode("utf-8", "replace"))
        except BrokenPipeError:
            raise ReaderGone("the reader of standard output went away") from None
        except OSError as error:
            raise Gpt2cliError(f"cannot write to standard output: {error.strerror or error}") from None

    def dim(self, text: str) -> str:
        """``text`` as it is shown on stdout when it is not the point."""
        return f"{_DIM}{text}{_PLAIN}" if self.stdout_is_terminal and self.styled and text else text

    def note(self, text: str) -> None:
        """A dim line on stderr; none with ``--quiet``."""
        if not self.quiet:
            self._say(sanitize(text), _DIM)

    def warn(self, text: str) -> None:
        """A warning on stderr; none with ``--quiet``."""
        if not self.quiet:
            self._say(f"warning: {one_line(text)}", _YELLOW)

    def error(self, error: BaseException, hint: str | None = None) -> None:
        """What went wrong in one line, and what to do in the next."""
        self._say(f"error: {one_line(str(error))}", _RED)
        if hint:
            self._say(f"hint: {one_line(hint)}", _DIM)

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 where there is none."""
        return shutil.get_terminal_size().columns

    def live(self, text: str) -> bool:
        """A dim line on stderr that the next one replaces; false where lines cannot be replaced."""
        if self.quiet or not self.stderr_is_terminal or not self.styled or self._stderr is None:
            return False
        line = one_line(text)[: max(1, self.width - 1)]
        self.write_stderr(f"{_CLEAR}{_DIM}{line}{_PLAIN}")
        self._live = True
        return True

    def clear_live(self) -> None:
        """Take the line of `live` away."""
        if self._live:
            self._live = False
            self.write_stderr(_CLEAR)

    def traceback(self, text: str) -> None:
        """A traceback, as ``--debug`` asks for it."""
        self._say(sanitize(text).rstrip("\n"), "")

    def _say(self, line: str, style: str) -> None:
        """A line on stderr."""
        if style and self.stderr_is_terminal and self.styled:
            line = f"{style}{line}{_PLAIN}"
        if self._live:
            self._live, line = False, _CLEAR + line
        self.write_stderr(line + "\n")

    def write_stderr(self, text: str) -> None:
        """Put ``text``, which is safe to show, on stderr; one that cannot be written to is nobody's error."""
        if self._stderr is None:
            return
        try:
            self._write_all(self._stderr, text.encode("utf-8", "replace"))
        except OSError:
            self._stderr = None

    def _write_all(self, stream: Any, data: bytes) -> None:
        """Write in pieces that do not block, so that a signal can end the wait for a stuck reader."""
        view = memoryview(data)
        patience = SIGNAL_PATIENCE_S
        while view:
            if not _is_ready(stream):
                if self.signals.received is not None:
                    patience -= READY_EVERY_S
                    if patience <= 0:
                        raise self.signals.received
                continue
            written = stream.write(view[:PIECE_BYTES])
            view = view[written or 0 :]
        stream.flush()


def _reserve_standard_descriptors() -> None:
    """Open the null device on each of 0, 1, 2 that is closed, lest a model file becomes stdout."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _binary(stream: Any) -> Any:
    """The bytes below a text stream, unbuffered for output where possible."""
    if stream is None:
        return None
    buffer = getattr(stream, "buffer", None)
    if buffer is None or stream is sys.stdin:
        return buffer
    return getattr(buffer, "raw", buffer)


def flush_standard_streams() -> bool:
    """Flush what libraries wrote to ``sys.stdout`` and ``sys.stderr``; false when that failed.

    What cannot be written is dropped: the interpreter would try again as it exits, and complain.
    """
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            flushed = False
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return flushed


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


def _is_ready(stream: Any) -> bool:
    """Whether a piece can be written now; waits a moment for it."""
    try:
        return bool(select.select([], [stream], [], READY_EVERY_S)[1])
    except (OSError, ValueError):
        # Not a descriptor, or none that can be waited for.
        return True
