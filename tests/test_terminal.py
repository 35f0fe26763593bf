"""The room that writes: blocks, JSON lines, files, streams, signals."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import Gpt2cliError, Interrupted, ReaderGone, UsageError
from gpt2cli.files import check_writable, write_atomically
from gpt2cli.terminal.blocks import Blocks
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.signals import Signals
from gpt2cli.terminal.streams import Terminal


class Stream(io.BytesIO):
    """A stream of bytes that fails, or writes little at a time, as descriptors do."""

    def __init__(self, *, error: OSError | None = None, piece: int = 1 << 20, terminal: bool = False) -> None:
        super().__init__()
        self._error, self._piece, self._terminal = error, piece, terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        if self._error:
            raise self._error
        return super().write(data[: self._piece])


def terminal_of(stdout: Stream | None = None, stderr: Stream | None = None) -> Terminal:
    return Terminal(None, stdout, stderr, {"TERM": "xterm"})


def test_first_block_streams_and_the_others_wait() -> None:
    written: list[str] = []
    blocks = Blocks(written.append, ["A:", "B:"], safe=False)
    blocks.push(1, "b")
    blocks.push(0, "a")
    assert written == ["A:", "a"]
    blocks.end(1)
    blocks.push(0, "a\n")
    blocks.end(0)
    assert "".join(written) == "A:aa\nB:b\n"


@given(st.lists(st.tuples(st.integers(0, 2), st.text("ab\n", max_size=3)), max_size=20))
def test_order_of_pieces_does_not_matter(pieces: list[tuple[int, str]]) -> None:
    """Whatever comes when, the blocks come out whole and in order."""
    written: list[str] = []
    blocks = Blocks(written.append, ["", "-", "-"], safe=False)
    for block, text in pieces:
        blocks.push(block, text)
    for block in (2, 0, 1):
        blocks.end(block)
    texts = ["".join(text for at, text in pieces if at == block) for block in range(3)]
    heads = ("", "-", "-")
    whole = "".join(
        h + t + ("" if (h + t).endswith("\n") else "\n") for h, t in zip(heads, texts, strict=True)
    )
    assert "".join(written) == whole


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5))
def test_json_line_is_json_and_safe(value: object) -> None:
    line = json_line(value)
    assert json.loads(line) == value
    assert line.count("\n") == 1
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in line[:-1])


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"x": float("nan")})


def test_short_writes_are_finished() -> None:
    """A descriptor may take less than it is given."""
    stdout = Stream(piece=3)
    terminal_of(stdout).write("héllo wörld")
    assert stdout.getvalue().decode() == "héllo wörld"


def test_errors_of_stdout() -> None:
    with pytest.raises(ReaderGone):
        terminal_of(Stream(error=BrokenPipeError())).write("x")
    with pytest.raises(Gpt2cliError, match="No space left"):
        terminal_of(Stream(error=OSError(28, "No space left on device"))).write("x")
    with pytest.raises(Gpt2cliError, match="closed"):
        terminal_of(None).write("x")


def test_stderr_never_fails() -> None:
    for stderr in (None, Stream(error=BrokenPipeError())):
        terminal = terminal_of(Stream(), stderr)
        terminal.note("x")
        terminal.error(ValueError("x"), "y")


def test_errors_are_one_sanitised_line() -> None:
    stderr = Stream()
    terminal_of(Stream(), stderr).error(ValueError("two\nlines \x1b[31m"), "a\thint")
    assert stderr.getvalue() == b"error: two lines [31m\nhint: a hint\n"


def test_styles_only_on_a_terminal() -> None:
    plain, shown = Stream(), Stream(terminal=True)
    terminal_of(Stream(), plain).warn("x")
    terminal_of(Stream(), shown).warn("x")
    assert plain.getvalue() == b"warning: x\n"
    assert shown.getvalue().startswith(b"\x1b[33m")


def test_quiet_keeps_errors() -> None:
    stderr = Stream()
    terminal = terminal_of(Stream(), stderr)
    terminal.quiet = True
    terminal.note("note")
    terminal.warn("warning")
    terminal.error(ValueError("error"))
    assert stderr.getvalue() == b"error: error\n"


def test_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "out", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomically(link, "new")
    assert (target.read_text(), link.is_symlink()) == ("new", True)
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_writable(tmp_path)
    with pytest.raises(UsageError):
        check_writable(tmp_path / "no" / "such")
    with pytest.raises(Gpt2cliError):
        write_atomically(tmp_path / "no" / "such", "x")
    assert list(tmp_path.iterdir()) == []


def test_new_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "out", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_signals_raise_until_softened_and_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    calls: list[int] = []
    with Signals(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)
    with Signals() as signals:
        signals.soften(lambda: calls.append(1))
        signal.raise_signal(signal.SIGINT)
        assert (calls, signals.received) == ([1], Interrupted)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
