"""A manual page as plain text, for who has no man: roff's man macros as far as our page uses them."""

from __future__ import annotations

import re
import textwrap

_FONTS = re.compile(r"\\f[A-Z]")
_ESCAPES = {r"\-": "-", r"\(aq": "'", r"\(ga": "`", r"\(ti": "~", r"\&": "", r"\e": "\\"}
_ESCAPE = re.compile("|".join(map(re.escape, _ESCAPES)))
_INDENT, _DEEPER = 7, 14


def plain_page(roff: str, width: int = 80) -> str:
    """The text of a page, its paragraphs wrapped at ``width`` columns."""
    lines: list[str] = []
    paragraph: list[str] = []
    indent, term, example = _INDENT, False, False

    def close() -> None:
        if paragraph:
            room = max(20, width - indent)
            lines.extend(" " * indent + line for line in textwrap.wrap(" ".join(paragraph), room))
            paragraph.clear()

    for raw in roff.splitlines():
        macro, _, rest = raw.partition(" ") if raw.startswith(".") else ("", "", raw)
        text = _text(rest)
        if macro in (".TH", r".\""):
            continue
        if macro in (".SH", ".SS"):
            close()
            lines += ["", " " * (0 if macro == ".SH" else 3) + text]
            indent = _INDENT
        elif macro in (".TP", ".PP"):
            close()
            lines += [""] if macro == ".PP" else []
            indent, term = _INDENT, macro == ".TP"
        elif macro in (".EX", ".EE"):
            close()
            example = macro == ".EX"
        elif example:
            lines.append(" " * indent + text)
        elif term:
            lines.append(" " * indent + text)
            indent, term = _DEEPER, False
        else:
            paragraph.append(text)
    close()
    return "\n".join(lines).lstrip("\n") + "\n"


def _text(roff: str) -> str:
    """Words without roff's escapes and quotes around an argument."""
    text = _ESCAPE.sub(lambda found: _ESCAPES[found[0]], _FONTS.sub("", roff))
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
