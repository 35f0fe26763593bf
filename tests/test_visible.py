"""Tokens as they are shown to people: one sign for a newline, whatever command shows it."""

from __future__ import annotations

from pathlib import Path

from cli import call

from gpt2cli.repl.text_layout import TokenText, token_table
from gpt2cli.text.visible import quoted


def test_a_newline_is_the_same_sign_everywhere(tiny_model: Path) -> None:
    r"""It was ``↵`` in `inspect`, ``⏎`` in chat, and ``\n`` in `score`."""
    text = "a\n b"
    rows = [
        call("score", "-m", tiny_model, "--tokens", "-p", text, tty="out").out,
        call("score", "-m", tiny_model, "--choice", "\n", "--choice", "b", "-p", "a", tty="out").out,
        call("inspect", "-m", tiny_model, "--top", "3", "-p", text, tty="out", NO_COLOR="1").out,
        "\n".join(token_table([TokenText("\n", 0.5, (10,))])),
    ]
    for shown in rows:
        assert "↵" in shown and "⏎" not in shown and "\\n" not in shown
    assert quoted(" a\t\x1b") == "' a⇥␛'"


def test_another_program_gets_what_python_writes(tiny_model: Path) -> None:
    rows = call("score", "-m", tiny_model, "--tokens", "-p", "a\n b").out.splitlines()
    assert [row.split("\t")[5] for row in rows] == [repr("\n"), repr(" "), repr("b")]
