"""What stands beneath the text: the suggestions, and the bar; as lines that fit. Without a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.utils import get_cwidth

from gpt2cli.repl.status import clipped
from gpt2cli.repl.text_layout import wrapped
from gpt2cli.suggest.drawing import Drawing
from gpt2cli.text.sanitize import one_line
from gpt2cli.text.visible import visible

MARGIN = 4
"""Columns before a suggestion: a mark, its number, a space."""
MOST_ROWS = 3
"""Of one suggestion."""
LEAST_TEXT = 5
"""Rows that the text keeps, whatever there is to suggest."""
TOKEN_COLUMNS = 5
_SEPARATOR = " · "


def rows_each(max_new_tokens: int, wanted: int, width: int, height: int) -> int:
    """The rows of a suggestion on a screen of this size, which stay the same while it is drawn."""
    needed = -(-max_new_tokens * TOKEN_COLUMNS // max(1, width - MARGIN))
    room = (height - LEAST_TEXT - 2) // max(1, wanted)
    return max(1, min(needed, MOST_ROWS, room))


def suggestion_lines(drawing: Drawing, chosen: int, rows: int, width: int) -> StyleAndTextTuples:
    """The suggestions, ``rows`` for each, and a message where there are none."""
    pieces: StyleAndTextTuples = []
    shown = drawing.shown
    for number in range(drawing.wanted):
        one = shown[number] if number < len(shown) else None
        text = "" if one is None else visible(one.text).removeprefix(" ")
        if one is not None and one.done and one.ended and not one.text:
            text = "(the text ends here)"
        lines = wrapped(text, max(4, width - MARGIN - 1))
        if len(lines) > rows:
            lines = [*lines[: rows - 1], clipped(" ".join(lines[rows - 1 :]), max(4, width - MARGIN - 1))]
        lines += [""] * (rows - len(lines))
        is_chosen = number == chosen and one is not None
        for at, line in enumerate(lines):
            numbered = at == 0 and one is not None
            mark = f"{'>' if is_chosen else ' '} {number + 1} " if numbered else " " * MARGIN
            style = "class:suggestion.chosen" if is_chosen else "class:suggestion"
            pieces += [("class:suggestion.mark", mark), (style, line), ("", "\n")]
    return pieces[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the bar tells; what is empty is left out."""

    name: str
    modified: bool
    said: str = ""
    """What was just done, or went wrong; a state of the model; a question's answer."""
    model: str = ""
    seen: str = ""
    """Where not all before the cursor is seen by the model."""
    place: str = ""
    keys: str = ""
    short_keys: str = ""


def bar(facts: Facts, width: int) -> str:
    """The bar in at most ``width`` columns: what matters least is left out first."""
    name = one_line(facts.name) + ("*" if facts.modified else "")
    said, seen, model = one_line(facts.said), facts.seen, one_line(facts.model)
    short = clipped(name, max(8, width // 3))
    choices: Sequence[tuple[str, ...]] = (
        (name, said, model, seen, facts.place, facts.keys),
        (name, said, model, seen, facts.place, facts.short_keys),
        (name, said, model, seen, facts.keys),
        (name, said, seen, facts.keys),
        (short, said, seen, facts.keys),
        (short, said, seen, facts.short_keys),
        (short, said, facts.short_keys),
        (short, said, seen),
        (short, said),
        (said,),
    )
    for parts in choices:
        line = _SEPARATOR.join(part for part in parts if part)
        if get_cwidth(line) <= width:
            return line
    return clipped(said or name, width)


def seen_note(dropped: int, before: int) -> str:
    """How much of the text before the cursor the model sees, where it is not all."""
    return f"model sees the last {before - dropped:,} characters" if 0 < dropped < before else ""
