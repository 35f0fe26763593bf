"""Text coloured by how unexpected each piece of it was, and readable without colour.

A level from 0 to 9 is a number of bits, rounded down. Level 0 is plain text; the others have a background
and a foreground of their own, so that they look the same on a dark and on a light terminal. Without
colour the level stands as a digit under the beginning of each piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from gpt2cli.text.visible import visible

COLOURS = (
    "",
    "#9cc9e8",
    "#9fdcd4",
    "#b5e3ad",
    "#dcebA0",
    "#f8e58c",
    "#fdc76b",
    "#fca456",
    "#f77f57",
    "#ea5f74",
)
INK = "#000000"
"""The colour of letters on a coloured background."""
UNSCORED = "·"
"""Under a piece that nothing predicted."""
UNSEEN = "\u25cc"
"""A dotted circle: what is shown of a piece that takes no room."""

_STYLES = tuple(Style(color=INK, bgcolor=colour) if colour else Style() for colour in COLOURS)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text and its level; None where nothing predicted it."""

    text: str
    level: int | None


@dataclass(slots=True)
class _Cell:
    """One character on the screen; ``begins`` says whether a digit belongs under it."""

    char: str
    width: int
    level: int | None
    begins: bool = False
    breaks: bool = False
    """Whether a line ends after it."""


def heat_lines(spans: Sequence[Span], width: int, *, marks: bool) -> list[Text]:
    """``spans`` as lines of at most ``width`` cells, with ``marks`` a line of digits under each."""
    lines: list[Text] = []
    for row in _wrapped(_cells(spans), max(2, width)):
        line = Text(no_wrap=True)
        for cell in row:
            line.append(cell.char, level_style(cell.level))
        lines.append(line)
        if marks:
            lines.append(Text(_marks(row).rstrip(), style=Style(dim=True), no_wrap=True))
    return lines


def _cells(spans: Sequence[Span]) -> list[_Cell]:
    cells: list[_Cell] = []
    for span in spans:
        # A piece that takes no room (combining characters, or nothing) must be seen.
        text = span.text if cell_len(visible(span.text)) else UNSEEN + span.text
        blank = not text.strip()
        begun = False
        for raw, char in zip(text, visible(text), strict=True):
            cell = _Cell(char, cell_len(char), span.level, breaks=raw == "\n")
            if not begun and cell.width and (blank or not raw.isspace()):
                cell.begins = begun = True
            cells.append(cell)
    return cells


def _wrapped(cells: Sequence[_Cell], width: int) -> Iterator[list[_Cell]]:
    """Lines of at most ``width`` cells, broken after white space where there is some."""
    row: list[_Cell] = []
    used = 0
    for cell in cells:
        while used + cell.width > width and row:
            cut = next((at for at in range(len(row), 0, -1) if row[at - 1].char == " "), len(row))
            yield row[:cut]
            row = row[cut:]
            used = sum(kept.width for kept in row)
        row.append(cell)
        used += cell.width
        if cell.breaks:
            yield row
            row, used = [], 0
    if row:
        yield row


def _marks(row: Sequence[_Cell]) -> str:
    digits = ("" if cell.width == 0 else _mark(cell).ljust(cell.width) for cell in row)
    return "".join(digits)


def _mark(cell: _Cell) -> str:
    if not cell.begins:
        return " "
    return UNSCORED if cell.level is None else str(cell.level)


SCALES = {
    "probability": ("probability over 1/2", "under 1/512"),
    "rank": ("the likeliest token", "rank 512 and beyond"),
    "entropy": ("under 1 bit of uncertainty", "9 bits and more"),
}
"""What the lowest and the highest level mean, by measure."""


def legend(measure: str, *, colours: bool) -> Text:
    """The scale of levels of ``measure``."""
    low, high = SCALES[measure]
    line = Text(overflow="fold")
    line.append(f"{low}  ", Style(dim=True))
    for level, style in enumerate(_STYLES):
        line.append(f" {level} " if colours else f"{level} ", style)
    line.append(f" {high}", Style(dim=True))
    return line


def level_style(level: int | None) -> Style:
    """The look of a level; None is that of what nothing predicted."""
    return Style(dim=True) if level is None else _STYLES[level]
