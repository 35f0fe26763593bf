"""Rows of text: aligned for a person, tab-separated for a program. Every cell is sanitised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from gpt2cli.text.sanitize import one_line


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of columns, the header first; the columns ``right`` are aligned to the right."""
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def tab_separated(rows: Sequence[Sequence[str]]) -> str:
    """A line a row, a tab between cells."""
    return "".join("\t".join(one_line(cell) for cell in row) + "\n" for row in rows)


def shown_bytes(size: float) -> str:
    """A size for a person: ``548 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        # What would be rounded to 1,000 of a unit is 1.00 of the next.
        if size >= 0.9995 * factor:
            value = size / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{size:.0f} B"


def shown_count(number: int) -> str:
    """A number of parameters for a person: ``124M``."""
    millions = number / 1e6
    if millions >= 9.95:
        return f"{millions:,.0f}M"
    if number >= 999_500:
        return f"{millions:.1f}M"
    return f"{number / 1e3:.0f}K" if number >= 1000 else str(number)


def shown_age(then: datetime | None) -> str:
    """How long ago something was, for a person."""
    if then is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"
