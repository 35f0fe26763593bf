"""What an untrusted string may do to a terminal: nothing. pyte is the terminal that looks."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyte
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.text.sanitize import Sanitizer, one_line, sanitize

BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
CONTROLS = [code for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"]
WIDTH, HEIGHT = 600, 32

HOSTILE = [
    "\x1b]0;owned\x07",
    "\x1b]2;owned\x1b\\",
    "\x1bkowned\x1b\\",
    "\x9d0;owned\x9c",
    "\x1b[c",
    "\x1b[>c",
    "\x1b[5n",
    "\x1b[6n",
    "\x9b6n",
    "\x1bZ",
    "\x05",
    "\x1b[2J",
    "\x1b[H",
    "\x1b[10;10H",
    "\x1b[5A",
    "\x9b5A",
    "\x1b[3g",
    "\x1bM",
    "\x8d",
    "\x84",
    "\x1bc",
    "\x1b[?25l",
    "\x1b[?1049h",
    "\x1b[8m",
    "\x1b(0",
    "\x0e",
    "\x08\x08",
    "\x0b",
    "\x0c",
    "\x7f",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x1bP+q544e\x1b\\",
    "\x90$q\x9c",
    "\x1b",
    "\x9b",
    "\r",
    "\u202eevil\u202c",
    "\u2066x\u2069",
]


def in_chunks(text: str, cuts: Sequence[int]) -> str:
    """``text``, cut at ``cuts``, through one sanitiser."""
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    sanitizer = Sanitizer()
    return "".join(sanitizer.push(text[a:b]) for a, b in pairwise(edges))


class Terminal(pyte.Screen):
    """A terminal that keeps what it answers, and whether its bell rang."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEIGHT)
        self.answers = ""
        self.rang = False

    def write_process_input(self, data: str) -> None:
        self.answers += data

    def bell(self, *_: Any) -> None:
        self.rang = True


def show(text: str) -> Terminal:
    """The terminal after ``text``, through a tty that turns a newline into CR LF."""
    terminal = Terminal()
    pyte.Stream(terminal).feed(text.replace("\n", "\r\n"))
    return terminal


def cursor_after(text: str) -> tuple[int, int]:
    """Row and column after plain text of narrow characters, newlines and tabs."""
    row, column = text.count("\n"), 0
    for char in text.rpartition("\n")[2]:
        column = (column // 8 + 1) * 8 if char == "\t" else column + 1
    return row, column


def test_every_code_point() -> None:
    """C0 but tab and newline, DEL, C1 and bidi go; a CR is a newline; nothing else changes."""
    dropped = {*CONTROLS, *BIDI} - set(b"\t\n\r")
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if code in dropped:
            assert sanitize(f"a{char}b") == "ab", hex(code)
        elif 0xD800 <= code < 0xE000:
            assert sanitize(char) == "\ufffd"
        elif char != "\r":
            assert sanitize(char) == char, hex(code)
    assert len(dropped) == 65 - 3 + 9


def test_a_carriage_return_is_a_newline() -> None:
    """A bare CR could write over what stands on the line, such as the question before it."""
    assert sanitize("safe\rEVIL") == "safe\nEVIL"
    assert sanitize("a\r\nb\n\rc\r\r\nd") == "a\nb\n\nc\n\nd"


def test_a_carriage_return_across_chunks() -> None:
    sanitizer = Sanitizer()
    assert [sanitizer.push(chunk) for chunk in ("a\r", "", "\nb\r", "c\r", "\r\n", "\n")] == [
        "a\n",
        "",
        "b\n",
        "c\n",
        "\n",
        "\n",
    ]


def test_what_is_dropped_does_not_part_a_carriage_return_from_its_newline() -> None:
    """Dropped characters must not count, or the result would depend on the chunks."""
    assert sanitize("a\r\x1b\nb") == "a\nb"
    assert in_chunks("a\r\x1b\nb", [2, 3]) == "a\nb"


alphabet = st.one_of(st.sampled_from([*HOSTILE, "\n", "\t", "word ", "é字😀\u200d"]), st.characters())
hostile_texts = st.lists(alphabet, max_size=20).map("".join)


@given(hostile_texts, st.lists(st.integers(0, 1000), max_size=6))
@settings(max_examples=800, deadline=None)
def test_any_chunks_give_the_whole(text: str, cuts: list[int]) -> None:
    assert in_chunks(text, cuts) == sanitize(text)


@given(hostile_texts)
@settings(max_examples=1000, deadline=None)
def test_sanitised_text_stays_as_it_is(text: str) -> None:
    clean = sanitize(text)
    assert sanitize(clean) == clean
    assert not {ord(char) for char in clean} & ({*CONTROLS, *BIDI} - set(b"\t\n"))
    clean.encode()


@given(hostile_texts)
@settings(max_examples=500, deadline=None)
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert line == line.strip()


def test_the_terminal_of_these_tests_would_notice() -> None:
    """The raw strings do move the cursor, set the title, ring and draw answers."""
    raw = [show("text" + text) for text in HOSTILE]
    assert any(terminal.title == "owned" for terminal in raw)
    assert sum(bool(terminal.answers) for terminal in raw) >= 3
    assert (
        sum((t.cursor.y, t.cursor.x) != cursor_after("text" + h) for t, h in zip(raw, HOSTILE, strict=True))
        > 10
    )


def test_a_terminal_only_ever_sees_plain_text() -> None:
    """No title, no answer, no bell, no attribute, and the cursor where the visible text ends."""
    rng = random.Random(0)
    words = ["word ", "a", "x y", "\n", "\t", "é"]
    for _ in range(300):
        text = "".join(
            rng.choice(HOSTILE if rng.random() < 0.5 else words) for _ in range(rng.randint(1, 20))
        )
        clean = in_chunks(text, [rng.randrange(200) for _ in range(3)])
        terminal = show(clean)
        assert (terminal.title, terminal.icon_name, terminal.answers, terminal.rang) == ("", "", "", False)
        assert (terminal.cursor.y, terminal.cursor.x) == cursor_after(clean)
        assert not terminal.cursor.hidden
        shown = [line.rstrip() for line in terminal.display[: clean.count("\n") + 1]]
        assert shown == [line.expandtabs(8).rstrip() for line in clean.split("\n")]
