"""What an untrusted string may do to a terminal: nothing.

Model text, file names, server errors and model cards all pass through here before a terminal sees
them. GPT-2 has a token for ESC (id 215), so that plain sampling can print it.
"""

from __future__ import annotations

_BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_DROPPED = [code for code in range(0x20) if chr(code) not in "\n\t\r"]
_DROPPED += [*range(0x7F, 0xA0), *_BIDI]
_TABLE: dict[int, str | None] = dict.fromkeys(_DROPPED)
_TABLE.update(dict.fromkeys(range(0xD800, 0xE000), "\ufffd"))


class Sanitizer:
    """Cleans a text that comes in chunks; ``push`` joined over the chunks equals ``sanitize`` of the whole.

    Drops C0 controls but newline and tab, DEL, C1 controls and bidirectional overrides; a carriage
    return becomes a newline, and one newline together with the newline that follows it.
    """

    def __init__(self) -> None:
        self._after_cr = False

    def push(self, text: str) -> str:
        """The part of ``text`` that may be shown."""
        text = text.translate(_TABLE)
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if "\r" in text:
            self._after_cr = text.endswith("\r")
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return text


def sanitize(text: str) -> str:
    """``text`` without anything that moves a cursor, sets a title or reorders what is read."""
    return Sanitizer().push(text)


def one_line(text: str) -> str:
    """``text``, sanitised, on one line, as an error message needs it."""
    return " ".join(sanitize(text).split())
