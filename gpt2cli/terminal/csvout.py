"""CSV for spreadsheets, which take some texts for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from gpt2cli.text.sanitize import sanitize

# The last four are the wide forms of the first.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as RFC 4180 has it. Texts are sanitised, and one that a spreadsheet might run as a formula
    gets an apostrophe before it (OWASP, "CSV Injection"), as has one that begins with an apostrophe: to
    take one off gives the text. None is an empty cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(header)
    for row in rows:
        writer.writerow([_guarded(cell) if isinstance(cell, str) else cell for cell in row])
    return buffer.getvalue()


def _guarded(text: str) -> str:
    text = sanitize(text)
    guarded = text.startswith(("'", "\t")) or text.lstrip().startswith(FORMULA_STARTS)
    return f"'{text}" if guarded else text
