"""Text laid out in columns and lines: the tree of turns, texts side by side, tokens by their probability.

All of it returns lines that are safe to show and fit the width; styles are SGR parameters or none.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prompt_toolkit.utils import get_cwidth

from gpt2cli.repl.status import clipped
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.text.sanitize import one_line, sanitize
from gpt2cli.text.visible import quoted

_WORDS = re.compile(r"\n|[ \t]?[^ \t\n]+|[ \t]")

MIN_COLUMN = 24
"""Texts stand side by side while each has as many columns."""
GAP = 2


@dataclass(frozen=True, slots=True)
class Level:
    """A class of probability: from ``least`` up; its style and its name."""

    least: float
    style: str
    name: str


LEVELS = (
    Level(0.5, "32", "50% to 100%"),
    Level(0.2, "33", "20% to 50%"),
    Level(0.05, "35", "5% to 20%"),
    Level(0.0, "1;31", "under 5%"),
)


def level_of(probability: float) -> Level:
    """The class of a probability."""
    return next(level for level in LEVELS if probability >= level.least)


def tree_lines(tree: Tree, width: int) -> list[str]:
    """The turns, one a line, indented only where they branch; the current one has a ``*``.

    A line of turns without branches stays at one indentation, however long it is.
    """
    current = tree.current.id if tree.current else None
    lines: list[str] = []
    # Depth first without recursion: a session may have thousands of turns.
    stack = [(turn, "", "") for turn in reversed(tree.children(None))]
    several = len(stack) > 1
    stack = [
        (turn, _branch(several, last=at == 0), _below(several, last=at == 0))
        for at, (turn, _, _) in enumerate(stack)
    ]
    while stack:
        turn, head, below = stack.pop()
        mark = "*" if turn.id == current else " "
        lines.append(clipped(f"{head}{turn.id}{mark} {_turn_text(turn)}", width))
        children = tree.children(turn.id)
        several = len(children) > 1
        for at, child in enumerate(reversed(children)):
            last = at == 0
            stack.append((child, below + _branch(several, last=last), below + _below(several, last=last)))
    return lines


def _branch(several: bool, *, last: bool) -> str:
    if not several:
        return ""
    return "└─ " if last else "├─ "


def _below(several: bool, *, last: bool) -> str:
    if not several:
        return ""
    return "   " if last else "│  "


def _turn_text(turn: Turn) -> str:
    """Both sides of a turn on one line."""
    user, answer = one_line(turn.user), one_line(turn.answer)
    mark = " +" if turn.continues is not None else ""
    return f"{clipped(user, 30) or '(nothing)'}{mark} → {answer or '(nothing)'}"


def wrapped(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken between words where that is possible."""
    lines: list[str] = []
    for line in sanitize(text).expandtabs(4).split("\n"):
        lines += _wrap_line(line, max(1, width))
    return lines


def _wrap_line(line: str, width: int) -> list[str]:
    """`textwrap` counts characters; where these are not columns, it is done by columns."""
    if len(line) == get_cwidth(line):
        return textwrap.wrap(line, width, drop_whitespace=True) or [""]
    lines, now, used = [], "", 0
    for char in line:
        columns = get_cwidth(char)
        if used + columns > width and now:
            lines.append(now)
            now, used = "", 0
        now, used = now + char, used + columns
    return [*lines, now]


class Flow:
    """Breaks a text that comes in pieces between words; what was passed on stays as it is.

    A space at which the next word would not fit becomes the end of the line. A word whose end comes with
    a later piece may have to be broken by the terminal.
    """

    def __init__(self) -> None:
        self._column = 0

    def push(self, text: str, width: int) -> str:
        """``text``, fit for a terminal of ``width`` columns now."""
        return "".join(self._placed(part, width) for part in _WORDS.findall(text))

    def _placed(self, part: str, width: int) -> str:
        """A piece with at most one space, tab or end of line, at its beginning."""
        if part[0] == "\n":
            self._column = 0
            return part
        if part[0] == "\t":
            part = " " * (4 - self._column % 4) + part[1:]
        columns = get_cwidth(part)
        if part[0] == " " and self._column > 0 and self._column + columns > width >= columns:
            self._column = columns - 1
            return "\n" + part.lstrip(" ")
        self._column += columns
        if self._column > width:
            self._column = (self._column - 1) % width + 1
        return part


def side_by_side(heads: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Texts in columns under their heads; one after the other where the terminal is too narrow."""
    count = len(texts)
    column = (width - GAP * (count - 1)) // count
    if column < MIN_COLUMN:
        blocks = zip(heads, texts, strict=True)
        return [line for head, text in blocks for line in (clipped(head, width), *wrapped(text, width), "")]
    cells = [
        [clipped(head, column), *wrapped(text.strip("\n"), column)]
        for head, text in zip(heads, texts, strict=True)
    ]
    lines = []
    for row in range(max(map(len, cells))):
        parts = [_padded(cell[row] if row < len(cell) else "", column) for cell in cells]
        lines.append((" " * GAP).join(parts).rstrip())
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * max(0, width - get_cwidth(text))


@dataclass(frozen=True, slots=True)
class TokenText:
    """What became readable with a token, and the least probability of the tokens that it took."""

    text: str
    probability: float
    ids: tuple[int, ...]


def token_texts(logprobs: Iterable[tuple[int, float]], push: Callable[[int], str]) -> list[TokenText]:
    """Tokens as texts of whole characters; ``push`` is a detokenizer's."""
    found: list[TokenText] = []
    ids: list[int] = []
    least = 1.0
    for token, logprob in logprobs:
        ids.append(token)
        least = min(least, math.exp(logprob))
        if text := push(token):
            found.append(TokenText(sanitize(text), least, tuple(ids)))
            ids, least = [], 1.0
    if ids:
        found.append(TokenText("", least, tuple(ids)))
    return found


def coloured(tokens: Sequence[TokenText], width: int) -> str:
    """The text, each token in the colour of its probability, and what the colours mean."""
    flow, parts = Flow(), []
    for token in tokens:
        style = level_of(token.probability).style
        parts.append(f"\x1b[{style}m{flow.push(token.text, width)}\x1b[0m")
    legend = "  ".join(f"\x1b[{level.style}m■ {level.name}\x1b[0m" for level in LEVELS)
    return "".join(parts) + "\n" + legend + "\n"


def with_digits(tokens: Sequence[TokenText], width: int) -> list[str]:
    """The text, and under the first letter of each token its probability in tenths."""
    lines: list[str] = []
    for text, digits in _rows(tokens, max(2, width)):
        lines += [text.rstrip(), digits.rstrip()]
    return [*lines, "0 to 9: how likely the token was, in tenths (9: 90% and more)"]


def _rows(tokens: Sequence[TokenText], width: int) -> Iterator[tuple[str, str]]:
    """Rows of text and of digits of the same width."""
    text, digits, used = "", "", 0
    for token in tokens:
        digit = str(min(9, int(token.probability * 10)))
        for char in token.text.expandtabs(4):
            columns = get_cwidth(char)
            if char == "\n" or used + columns > width:
                # A token that is a line's end has its digit there.
                yield text, digits + (digit if char == "\n" and digit.strip() and used < width else "")
                digit = " " if char == "\n" else digit
                text, digits, used = "", "", 0
                if char == "\n":
                    continue
            text, used = text + char, used + columns
            digits += digit + " " * (columns - 1) if columns else ""
            digit = " " if columns else digit
    yield text, digits


def token_table(tokens: Sequence[TokenText]) -> list[str]:
    """A line a token: probability, a bar, ids, text."""
    lines = []
    for token in tokens:
        bar = "█" * round(token.probability * 10)
        ids = "+".join(map(str, token.ids))
        lines.append(f"{token.probability:7.2%} {bar:<10} {ids:>6} {quoted(token.text)}")
    return lines
