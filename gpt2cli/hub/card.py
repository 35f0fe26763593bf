"""A model card: the licence, and what it says of intended use, limits and bias.

A card is Markdown from outside: it is read up to a cap and sanitised here, so that what leaves this
module may be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2cli.errors import ModelFileError
from gpt2cli.model_files import CARD
from gpt2cli.text.sanitize import one_line, sanitize
from gpt2cli.untrusted import read_capped

MAX_BYTES = 2**20
MAX_SHOWN = 12_000
"""Characters of the sections together."""

_WANTED = re.compile(r"\b(intended|uses?|usage|out-of-scope|limit\w*|bias\w*|risks?|ethic\w*|safety)\b", re.I)
_NOT_WANTED = re.compile(r"\b(how to|code|example)", re.I)
_HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*)")
_FENCE = re.compile(r"[ \t]{0,3}(```|~~~)")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_LICENCE = re.compile(r"license[ \t]*:[ \t]*(\S[^\n]{0,80})")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a card, fit to be shown."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says, fit to be shown."""

    licence: str | None = None
    sections: tuple[Section, ...] = ()


def read_card(directory: Path) -> Card | None:
    """The card of a model directory; None where it has none that can be read."""
    try:
        data = read_capped(directory / CARD, MAX_BYTES)
    except ModelFileError:
        return None
    return parse_card(data.decode("utf-8", "replace"))


def parse_card(text: str) -> Card:
    """The card that ``text`` is."""
    front, body = _split_front_matter(sanitize(text.removeprefix("\ufeff")))
    licence = next((match[1] for line in front if (match := _LICENCE.match(line))), None)
    return Card(one_line(licence).strip("'\"[] ") or None if licence else None, tuple(_capped(_wanted(body))))


def _split_front_matter(text: str) -> tuple[list[str], list[str]]:
    """The lines between the two ``---`` at the top, and the rest."""
    lines = text.split("\n")
    if lines[0].strip() != "---":
        return [], lines
    for number, line in enumerate(lines[1:], 1):
        if line.strip() in ("---", "..."):
            return lines[1:number], lines[number + 1 :]
    return [], lines


def _wanted(lines: list[str]) -> Iterator[Section]:
    """The sections whose title, or a title above them, says what is looked for."""
    no_level = 7
    above = no_level
    for level, title, content in _headed(lines):
        if level <= above:
            above = level if _WANTED.search(title) else no_level
        wanted = above < no_level and not _NOT_WANTED.search(title)
        if wanted and (text := _tidy(content)):
            yield Section(title, text)


def _headed(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Each heading's level and title, and the lines up to the next heading; code blocks are left out."""
    level, title, content, fence = 0, "", list[str](), ""
    for line in lines:
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        elif fence:
            continue
        elif heading := _HEADING.match(line):
            if level:
                yield level, title, content
            level, title, content = len(heading[1]), one_line(_TAG.sub("", heading[2]).strip("#* ")), []
        else:
            content.append(line)
    if level:
        yield level, title, content


def _tidy(lines: list[str]) -> str:
    """Text without tags and comments, and with no more than one empty line in a row."""
    first, *commented = "\n".join(line.rstrip() for line in lines).split("<!--")
    text = first + "".join(part.partition("-->")[2] for part in commented)
    return re.sub(r"\n[ \t\n]*\n", "\n\n", _TAG.sub("", text)).strip()


def _capped(sections: Iterator[Section]) -> Iterator[Section]:
    left = MAX_SHOWN
    for section in sections:
        if left <= 0:
            return
        text = section.text if len(section.text) <= left else section.text[:left].rstrip() + " …"
        left -= len(text)
        yield Section(section.title[:200], text)
