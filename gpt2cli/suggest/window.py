"""What the model sees of a text: its end, and without the last space."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gpt2cli.text.pieces import safe_cut
from gpt2cli.text.reading import cleaned

HEAD = 256
"""So many characters tell the place at which a window begins."""
CHARACTERS = 4
"""Of a token, about."""
_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003fffd"
_BETWEEN = re.compile(r"(?<=\S)[ \n]")
_WORD = re.compile(rf"\s*(?:[{_WIDE}]|[^\s{_WIDE}]+|$)")


@dataclass(frozen=True, slots=True)
class Seen:
    """The ids of what the model sees, and how many characters before it are left out."""

    ids: list[int]
    dropped: int


class TextWindow:
    """The end of a text that grows and is edited, in at most ``limit`` tokens.

    It begins at the same place as long as the text there is the same and all of it fits, so that the
    engine's cache of keys and values stays of use; then a quarter of it is left out at once.
    """

    def __init__(self, encode: Callable[[str], list[int]], limit: int) -> None:
        self._whole, self._limit = encode, max(1, limit)
        self._start, self._head = 0, ""

    def see(self, text: str) -> Seen:
        """What the model sees of ``text``. Raises what encoding raises."""
        start = self._same_start(text)
        if len(text) - start <= self._limit * CHARACTERS * 8:
            ids = self._encode(text[start:])
            full = len(ids) > self._limit
            if not full and (start == 0 or len(ids) > self._limit // 4):
                return self._seen(text, start, ids)
        return self._anew(text)

    def _encode(self, part: str) -> list[int]:
        # Only what is seen is cleaned: the rest may be long.
        return self._whole(cleaned(part))

    def _same_start(self, text: str) -> int:
        """Where the window begins now, should the text before it have changed."""
        if not self._start:
            return 0
        if text.startswith(self._head, self._start):
            return self._start
        found = text.rfind(self._head)
        return found if found > 0 else 0

    def _anew(self, text: str) -> Seen:
        """A window three quarters full, or all of the text."""
        wanted = max(1, self._limit * 3 // 4)
        start, size = 0, wanted * CHARACTERS
        while True:
            start = _cut(text, len(text) - size)
            ids = self._encode(text[start:])
            if start == 0 and len(ids) <= self._limit:
                return self._seen(text, 0, ids)
            if len(ids) >= wanted or start == 0:
                break
            size *= 2
        while len(ids) > wanted and start < len(text) - 1:
            length = len(text) - start
            cut = _cut(text, start + max(1, length * (len(ids) - wanted) // len(ids)))
            start = cut if cut > start else start + max(1, length * (len(ids) - wanted) // len(ids))
            ids = self._encode(text[start:])
        return self._seen(text, start, ids[-self._limit :])

    def _seen(self, text: str, start: int, ids: list[int]) -> Seen:
        self._start, self._head = start, text[start : start + HEAD]
        return Seen(ids, start)


def _cut(text: str, at: int) -> int:
    """A place not far behind ``at`` at which a word begins; 0 for what is not within the text."""
    if at <= 0:
        return 0
    found = _BETWEEN.search(text, at, at + HEAD)
    return at if found is None else found.start()


def without_last_space(text: str) -> tuple[str, bool]:
    """``text`` without one space at its end, and whether there was one.

    For GPT-2 a word begins with its space: after a space of its own the model would see two.
    """
    return (text[:-1], True) if text.endswith(" ") else (text, False)


def whole_words(text: str) -> str:
    """``text`` without the word at its end, which may not be finished: what can be read ahead."""
    end = len(text.rstrip())
    return text[: safe_cut(text[:end])]


def next_word(text: str) -> str:
    """The first word of ``text`` with the white space before it; of writing without spaces, a character."""
    found = _WORD.match(text)
    return found[0] if found else text
