"""`gpt2cli write` as a person sees it: the real program in a real terminal, with the built-in model."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import call
from support import make_model

pytest.importorskip("pexpect")
from chat_screen import CTRL_C, ENTER, ESCAPE, PASTE, PASTE_END, TAB, ChatScreen

CTRL_Q, CTRL_S, CTRL_Y, CTRL_Z = "\x11", "\x13", "\x19", "\x1a"
RIGHT, DOWN, TO_END = "\x1b[C", "\x1b[B", "\x1b[1;5F"
BEGINNING = "Once upon a time there was a little dog."


@contextmanager
def write(*arguments: Any, ready: bool = True, **keywords: Any) -> Iterator[ChatScreen]:
    """An editor that is on the screen, and with ``ready`` its model loaded."""
    words = ("/usr/bin/env", sys.executable, "-m", "gpt2cli", "write", "--seed", "3", *map(str, arguments))
    screen = ChatScreen(*words, **keywords)
    try:
        screen.wait(lambda: b"\x1b[?1049h" in screen.raw and screen.lines[-1].startswith(" "))
        if ready:
            screen.wait(lambda: "^S" in screen.bar and "loading" not in screen.bar)
        yield screen
    finally:
        screen.child.close(force=True)


def suggestions(screen: ChatScreen) -> list[str]:
    """The first line of each suggestion."""
    return [line[4:].strip() for line in screen.lines if re.match(r"[> ] [123] ", line)]


def draw(screen: ChatScreen) -> list[str]:
    """Ask for suggestions, and wait for all of them."""
    screen.send(TAB)
    screen.wait(lambda: len(suggestions(screen)) == 3 and " · drawing" not in screen.bar)
    screen.settle()
    return suggestions(screen)


def body(screen: ChatScreen) -> str:
    """The text, its rows joined."""
    rows = []
    for line in screen.lines[:-1]:
        if line.startswith("───"):
            break
        rows.append(line)
    return " ".join(rows).strip()


def test_suggestions_are_taken_undone_and_saved(tmp_path: Path) -> None:
    """Three of one batch; Enter takes one, → a word of another; the sidecar says who wrote what."""
    path = tmp_path / "story.txt"
    path.write_bytes(BEGINNING.encode() + b"\r\nIt lived\r\n")
    with write("--provenance", path) as screen:
        # The cursor stands where the text is gone on with.
        assert "line 2 of 2" in screen.bar and BEGINNING in screen.text
        first = draw(screen)
        assert len(set(first)) == 3
        screen.send(DOWN)
        screen.wait(lambda: any(line.startswith("> 2") for line in screen.lines))
        screen.send(ENTER)
        screen.wait(lambda: not suggestions(screen))
        assert f"It lived {first[1]}" in body(screen) and "story.txt*" in screen.bar
        coloured = {cell.fg for cell in screen.screen.buffer[1].values()}
        assert "cyan" in coloured, "what the model wrote is marked until it is saved"
        taken = body(screen)
        screen.send(CTRL_Z)
        screen.wait(lambda: body(screen).endswith("It lived"))
        screen.send(CTRL_Y)
        screen.wait(lambda: body(screen) == taken)
        screen.send(CTRL_Z)
        screen.wait(lambda: body(screen).endswith("It lived"))
        second = draw(screen)
        assert second != first, "another draw has other seeds"
        screen.send("3" + RIGHT)
        word = second[2].split()[0]
        screen.wait(lambda: body(screen).endswith(f"It lived {word}"))
        screen.send(".")
        screen.wait(lambda: not suggestions(screen) and body(screen).endswith(f"{word}."))
        screen.send(CTRL_S)
        screen.wait("saved")
        assert {cell.fg for cell in screen.screen.buffer[1].values()} == {"default"}
        assert screen.leave(CTRL_Q) == 0
    data = path.read_bytes()
    assert data == f"{BEGINNING}\r\nIt lived {word}.\r\n".encode()
    record = json.loads(path.with_name("story.txt.provenance.json").read_text())
    spans = [(data[s["start"] : s["end"]].decode(), s["by"]) for s in record["spans"]]
    assert spans == [(f"{BEGINNING}\r\nIt lived", "before"), (f" {word}", "model"), (".\r\n", "user")]
    assert record["draws"][0]["model"] == "tiny" and record["draws"][0]["seed"] == 3 + 8 + 2


def test_a_killed_editor_loses_nothing(tmp_path: Path) -> None:
    path, home = tmp_path / "story.txt", str(tmp_path / "home")
    path.write_text("old\n")
    with write(path, ready=False, GPT2CLI_HOME=home) as screen:
        screen.wait("old")
        screen.send(f" new \x1b[200~{'pasted line' + ENTER}{PASTE_END}words")
        screen.wait(lambda: screen.lines[1].startswith("words"))
        screen.kill(signal.SIGKILL)
        assert screen.end() == -signal.SIGKILL
    assert path.read_text() == "old\n"
    with write(path, ready=False, columns=40, GPT2CLI_HOME=home) as screen:
        screen.wait("Restore it? y n")
        screen.send("xy")
        screen.wait(lambda: screen.lines[1].startswith("words"))
        screen.send(CTRL_S)
        screen.wait("saved")
        assert screen.leave(CTRL_Q) == 0
    assert path.read_text() == "old new pasted line\nwords\n"
    assert not list(Path(home, "state", "write").iterdir())


def test_a_text_without_a_name_and_a_signal(tmp_path: Path) -> None:
    """SIGTERM leaves what was typed to the next one; Ctrl-S asks for a name; n does not save."""
    home = str(tmp_path / "home")
    with write(ready=False, GPT2CLI_HOME=home) as screen:
        screen.send("some words")
        screen.wait("some words")
        screen.kill(signal.SIGTERM)
        assert screen.end() == 143
    with write(ready=False, GPT2CLI_HOME=home) as screen:
        screen.wait("Restore it? y n")
        screen.send("y")
        screen.wait("some words")
        screen.send(CTRL_S)
        screen.wait("Save as:")
        screen.send(str(tmp_path / "absent" / "f.txt") + ENTER)
        screen.wait("error: cannot write")
        screen.send(CTRL_S + "n" * 300 + ENTER)
        screen.wait("File name too long")
        screen.send(CTRL_S + str(tmp_path / "f.txt") + ENTER)
        screen.wait("saved 11 bytes")
        screen.send(" more" + CTRL_Q)
        screen.wait("Save f.txt before leaving?")
        screen.send(ESCAPE)
        screen.wait("not saved")
        assert screen.leave(CTRL_Q + "n") == 0
    assert (tmp_path / "f.txt").read_text() == "some words\n"


def test_keys_that_hand_in_a_line_or_go_through_a_history(tmp_path: Path) -> None:
    """A text is neither: nothing is cleared, and the first and the last place are the text's."""
    path = tmp_path / "story.txt"
    path.write_text("one\ntwo\n")
    with write(path, ready=False) as screen:
        screen.wait("two")
        screen.send("\x0f" + ESCAPE + "#" + "a" + ESCAPE + "<" + "b" + ESCAPE + ">" + "c")
        screen.wait(lambda: "c" in body(screen))
        screen.send(CTRL_S)
        screen.wait("saved")
        assert screen.leave(CTRL_Q) == 0
    assert path.read_text() == "bone\ntwoac\n"


def test_a_name_is_typed_as_it_is_in_vi_mode_too(tmp_path: Path) -> None:
    with write(ready=False, GPT2CLI_EDITING_MODE="vi") as screen:
        screen.send("hi" + ESCAPE)
        screen.settle()
        screen.send(CTRL_S)
        screen.wait("Save as:")
        screen.send(str(tmp_path / "story.txt") + ENTER)
        screen.wait("saved")
        assert screen.leave(CTRL_Q) == 0
    assert (tmp_path / "story.txt").read_text() == "hi\n"


def test_a_long_paste_wide_characters_and_a_resize(tmp_path: Path) -> None:
    """5,000 lines pasted at once; narrow and wide; what is hostile is shown and never obeyed."""
    path = tmp_path / "story.txt"
    hostile = "\x1b]0;owned\x07\x1b[2Jend \u202e"
    path.write_text(f"日本語の文章を書く。👍🏽 {hostile}\n")
    lines = [f"line {number} of a long paste" for number in range(5000)]
    with write(path, columns=40, rows=12) as screen:
        screen.wait("日 本 語 の 文" if "日 本" in screen.text else "日本")
        assert "␛]0;owned␇" in "".join(screen.lines)
        screen.send(TO_END + ENTER + PASTE + ENTER.join(lines) + PASTE_END)
        screen.wait(lambda: lines[-1] in screen.text)
        screen.resize(100, 20)
        screen.wait(lambda: "line 5,001 of 5,001" in screen.bar and lines[-15] in screen.text)
        screen.send(CTRL_Z)
        screen.wait("line 2 of 2")
        screen.send(CTRL_Y)
        screen.wait("line 5,001 of 5,001")
        screen.send(TAB)
        screen.wait(lambda: len(suggestions(screen)) == 3)
        assert "sees the last" in screen.bar
        screen.send(CTRL_C)
        screen.wait(lambda: not suggestions(screen))
        screen.send(CTRL_S)
        screen.wait("saved")
        assert b"\x1b]0;owned" not in screen.raw
        assert screen.leave(CTRL_Q) == 0
    assert path.read_text() == f"日本語の文章を書く。👍🏽 {hostile}\n" + "\n".join(lines) + "\n"


def test_ghost_text_and_no_colours(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time there was a")
    with write("--suggest", path, NO_COLOR="1") as screen:
        screen.send(TO_END)
        screen.wait(lambda: len(body(screen)) > 40)
        screen.settle(0.5)
        shown = body(screen)
        screen.send(RIGHT)
        screen.wait(lambda: "story.txt*" in screen.bar)
        screen.send(CTRL_S + CTRL_Q)
        assert screen.end() == 0
        assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38|48)[;m]", screen.raw)
    saved = path.read_text()
    assert saved.startswith("Once upon a time there was a ") and shown.startswith(saved.strip()[:40])


def test_another_program_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("mine\n")
    with write(path, ready=False) as screen:
        screen.wait("mine")
        screen.send("a")
        screen.wait("minea")
        path.write_text("theirs\n")
        screen.send(CTRL_S)
        screen.wait("was changed by another program")
        screen.send("n")
        screen.wait("not saved")
        screen.send(CTRL_S)
        screen.wait("was changed by another program")
        screen.send("y")
        screen.wait("saved")
        assert screen.leave(CTRL_Q) == 0
    assert path.read_text() == "minea\n"


def refused(*arguments: Any, tty: str = "in out err", **environ: str) -> tuple[int, str]:
    """The exit code, and the error with its hint, without colours."""
    done = call("write", *arguments, tty=tty, **environ)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.err)
    lines = [line for line in said.splitlines() if not line.startswith("tiny:")]
    assert not done.out and [line.split(":")[0] for line in lines] == ["error", "hint"]
    return done.code, lines[0]


def test_where_it_cannot_run(tmp_path: Path, tiny_model: Path) -> None:
    """One line of what is wrong and one of what to do; the file is untouched."""
    assert refused(tty="in err") == (2, refused(tty="out err")[1])
    assert "TERM is dumb" in refused(TERM="dumb")[1]
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9\n")
    assert refused(bad) == (2, f"error: {bad}: it is no UTF-8 text (byte 4, line 1)")
    assert bad.read_bytes() == b"caf\xe9\n"
    no_tokenizer = make_model(tmp_path / "m", tokenizer=None)
    assert refused("-m", no_tokenizer)[0] == 5
    too_long = call("write", "-m", tiny_model, "--max-new-tokens", "40", tty="in out err")
    assert too_long.code == 2 and "leaves room for 31" in too_long.err
    for place in (tmp_path, tmp_path / "absent" / "f.txt"):
        done = call("write", place, tty="in out err")
        assert done.code == 2 and "cannot write" in done.err
    assert call("write", "--temperature", "-1", tty="in out err").code == 2
