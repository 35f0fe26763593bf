"""A text in rows of a screen: broken between words, by columns; safe to show. Without a terminal.

A row is a part of the text from ``start`` to ``end``, without the newline behind it. Only what is near
the cursor is ever laid out: a paragraph, or, of a very long one, a block of `BLOCK` characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prompt_toolkit.utils import get_cwidth

from gpt2cli.text.visible import visible

TAB = 4
BLOCK = 8192
_WIDE = (
    "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f"
    "\uff00-\uff60\uffe0-\uffe6\U0001f000-\U0003fffd"
)
_PARTS = re.compile(rf"\s+|[{_WIDE}]|[^\s{_WIDE}]+")
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Row:
    """The characters from ``start`` to ``end`` of a text."""

    start: int
    end: int


def row_at(text: str, at: int, width: int) -> Row:
    """The row of the place ``at``; of a place at which a row is broken, the one that begins there."""
    start, end = _block(text, at)
    breaks = _breaks(text[start:end], max(2, width))
    index = bisect_right(breaks, at - start) - 1
    last = breaks[index + 1] if index + 1 < len(breaks) else end - start
    return Row(start + breaks[index], start + last)


def row_after(text: str, row: Row, width: int) -> Row | None:
    """The row below; None below the last one."""
    if row.end >= len(text):
        return None
    return row_at(text, row.end + (text[row.end] == "\n" and not _broken(text, row)), width)


def row_before(text: str, row: Row, width: int) -> Row | None:
    """The row above; None above the first one."""
    return row_at(text, row.start - 1, width) if row.start else None


def rows_from(text: str, row: Row, width: int) -> Iterator[Row]:
    """``row`` and all below it."""
    now: Row | None = row
    while now is not None:
        yield now
        now = row_after(text, now, width)


def top_for(text: str, top: int, at: int, width: int, height: int) -> Row:
    """The first of ``height`` rows among which the place ``at`` is: the row of ``top`` where that will do."""
    wanted = row_at(text, at, width)
    first = row_at(text, min(top, len(text)), width)
    if wanted.start <= first.start:
        return wanted
    for row, _ in zip(rows_from(text, first, width), range(height), strict=False):
        if row.start == wanted.start:
            return first
    row = wanted
    for _ in range(height - 1):
        above = row_before(text, row, width)
        if above is None:
            break
        row = above
    return row


def column_of(text: str, row: Row, at: int) -> int:
    """The column of the place ``at`` in its row."""
    return _width_of(text[row.start : at])


def place_in(text: str, row: Row, column: int) -> int:
    """The place in a row that is nearest before a column."""
    used, at = 0, row.start
    # The end of a row that is broken between words is where the next one begins.
    last = row.end - 1 if _broken(text, row) and row.end > row.start else row.end
    while at < last:
        used += _columns(text[at], used)
        if used > column:
            break
        at += 1
    return boundary(text, at, forward=False, here=True)


def shown(part: str, column: int) -> str:
    """A part of a row that begins in ``column``, as the screen has it: no tabs, no control characters."""
    if part.isascii() and part.isprintable():
        return part
    cells: list[str] = []
    for char in part:
        tab = " " * (TAB - column % TAB)
        cell = tab if char == "\t" else char if char.isprintable() else visible(char)
        cells.append(cell)
        column += get_cwidth(cell)
    return "".join(cells)


def boundary(text: str, at: int, *, forward: bool, here: bool = False) -> int:
    """The next place before or after ``at`` that is not in the middle of a character as one sees it:
    a letter with its accents, an emoji put together of several. With ``here``, ``at`` itself will do.
    """
    step = 1 if forward else -1
    if not here:
        at += step
    while 0 < at < len(text) and _continues(text, at):
        at += step
    return min(max(at, 0), len(text))


def _continues(text: str, at: int) -> bool:
    """Whether the character at ``at`` belongs to the one before it."""
    char, before = text[at], text[at - 1]
    if char == "\n" or before == "\n" or (char.isascii() and before.isascii()):
        return False
    if char == _JOINER or before == _JOINER or "\U0001f3fb" <= char <= "\U0001f3ff":
        return True
    return char.isprintable() and get_cwidth(char) == 0


def _block(text: str, at: int) -> tuple[int, int]:
    """The paragraph of a place, without its newline; of a very long one the block."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    if end - start <= BLOCK:
        return start, end
    low = start + (at - start) // BLOCK * BLOCK
    # A place at the paragraph's very end has no block of its own.
    low = low - BLOCK if low == end and low > start else low
    return low, min(end, low + BLOCK)


def _broken(text: str, row: Row) -> bool:
    """Whether the row's end is within its paragraph."""
    return row.end < len(text) and text[row.end] != "\n"


@lru_cache(maxsize=1024)
def _breaks(block: str, width: int) -> list[int]:
    """Where the rows of a block begin, the first at 0. White space may stand beyond the last column."""
    breaks, used = [0], 0
    for match in _PARTS.finditer(block):
        part, at = match[0], match.start()
        columns = _width_of(part, used)
        if part[0].isspace() or used + columns <= width:
            # A row has room for one space that hangs over; a long run of them is broken.
            if part[0].isspace() and used + columns > width + 1 and len(part) > 1:
                used = _fill(part, at, width, used, breaks)
            else:
                used += columns
            continue
        if used and not (columns == 0 or (at and _continues(block, at))):
            breaks.append(at)
            used, columns = 0, _width_of(part)
        used = used + columns if columns <= width else _fill(part, at, width, used, breaks)
    return breaks


def _fill(part: str, at: int, width: int, used: int, breaks: list[int]) -> int:
    """Break within a part that is longer than a row; the columns used of the last row."""
    for offset, char in enumerate(part):
        columns = _columns(char, used)
        if used + columns > width and used:
            breaks.append(at + offset)
            used, columns = 0, _columns(char, 0)
        used += columns
    return used


def _columns(char: str, used: int) -> int:
    """The columns of a character after ``used`` others."""
    if char == "\t":
        return TAB - used % TAB
    return get_cwidth(char if char.isprintable() else visible(char))


def _width_of(part: str, used: int = 0) -> int:
    """The columns of a part of a row."""
    if part.isascii() and part.isprintable():
        return len(part)
    begin = used
    for char in part:
        used += _columns(char, used)
    return used - begin
