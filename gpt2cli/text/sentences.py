"""Where a sentence ends, by its marks alone: abbreviations are not known."""

from __future__ import annotations

_MARKS = frozenset(".!?…")
_CLOSING = frozenset("\"'\u201d\u2019\u00bb)]")


class SentenceLimit:
    """Passes text on until so many sentences are complete; what follows is not passed on.

    A sentence ends with ``.``, ``!``, ``?`` or ``…`` and what is closed after it, where white space follows;
    and with a line end. White space that follows the last sentence is not part of it. The result does not
    depend on how the text is cut into chunks.
    """

    def __init__(self, most: int | None) -> None:
        """Without ``most`` everything is passed on."""
        self._left = most
        self._begun = self._marked = False
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown. After the last sentence ``stopped`` is true and nothing more comes."""
        if self._left is None:
            return text
        if self.stopped:
            return ""
        for place, character in enumerate(text):
            space = character.isspace()
            if (self._marked and space) or (self._begun and character == "\n"):
                self._left -= 1
                self._begun = self._marked = False
                if not self._left:
                    self.stopped = True
                    return text[:place]
            elif not space:
                closes = self._marked and character in _CLOSING
                self._marked = closes or (self._begun and character in _MARKS)
                # What begins with marks alone is no sentence yet.
                self._begun = self._begun or character not in _MARKS
        return text
