"""Ghost text at the prompt of `chat`, in a real terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pexpect")
from chat_screen import CTRL_D, ENTER, ChatScreen, chat

RIGHT = "\x1b[C"
SHORT = ("--seed", "42", "--max-new-tokens", "8", "--no-save")
TYPED = "Once upon a time there was"


def line(screen: ChatScreen) -> str:
    """What stands at the prompt, ghost text included."""
    return next((line for line in reversed(screen.lines) if line.startswith(">")), "")


def answer(screen: ChatScreen) -> str:
    """Send what stands at the prompt; what is said to it."""
    prompts = screen.prompts
    screen.send(ENTER)
    screen.wait(lambda: screen.prompts > prompts)
    screen.settle()
    *_, sent, last = (n for n, text in enumerate(screen.lines) if text.startswith(">"))
    return "\n".join(screen.lines[sent:last])


def test_ghost_text_stands_behind_what_is_typed_and_is_no_part_of_it(tmp_path: Path) -> None:
    """It is dim, → takes it, typing along it leaves the rest; an answer is the same with it and without."""
    with chat(*SHORT, GPT2CLI_HOME=str(tmp_path)) as screen:
        screen.send(TYPED)
        screen.wait(TYPED)
        plain = answer(screen)
        assert "suggest" in screen.ask("/show") and "off" in screen.ask("/show")
        screen.ask("/undo")
        screen.ask("/set suggest=on")
        assert "error: suggest" in screen.ask("/set suggest=perhaps")
        screen.send(TYPED + " a")
        screen.wait(lambda: len(line(screen)) > len(TYPED) + 10)
        screen.settle(0.5)
        shown = line(screen)
        row = next(n for n, text in enumerate(screen.lines) if text == shown)
        assert screen.screen.buffer[row][len(shown) - 1].fg == "brightblack"
        rest = shown[len("> " + TYPED + " a") :]
        screen.send(rest[:2])
        screen.settle()
        assert line(screen).startswith(shown.strip())
        screen.send("\x15" + TYPED)
        screen.wait(lambda: len(line(screen)) > len(TYPED) + 5)
        assert plain == answer(screen), "as without"
        screen.send("/undo" + ENTER)
        screen.wait("undone")
        screen.send("Suddenly the")
        screen.wait(lambda: len(line(screen)) > len("> Suddenly the") + 5)
        screen.send(RIGHT + "!")
        screen.wait(lambda: line(screen).endswith("!"))
        assert len(line(screen)) > len("> Suddenly the") + 5
        screen.send("\x15")
        assert screen.leave(CTRL_D) == 0
