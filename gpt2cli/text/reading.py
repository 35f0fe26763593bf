"""From bytes to a text that a model can read: the rules for files, stdin, the command line and messages.

A byte-order mark at the beginning goes. What is no UTF-8, and NUL, is replaced by U+FFFD and counted, so
that the caller can warn of it or refuse it; so is a lone surrogate, which JSON can hold and text cannot.
From a prompt one final line end goes, which an editor or ``echo`` has put there. (Training data is refused
where it is no UTF-8 text, not mended: `gpt2cli.train.documents`.)
"""

from __future__ import annotations

import codecs
import re

REPLACEMENT = "\ufffd"
_BAD = re.compile("[\x00\ud800-\udfff]")
_ERRORS = "surrogateescape"


def decode(data: bytes) -> str:
    """Bytes as text; one that is no UTF-8 is a lone surrogate, which `clean` finds."""
    return data.decode("utf-8", _ERRORS)


def make_decoder() -> codecs.IncrementalDecoder:
    """`decode` for bytes that come in blocks."""
    return codecs.getincrementaldecoder("utf-8")(_ERRORS)


def encoded_size(text: str) -> int:
    """The number of bytes that `decode` made ``text`` of."""
    return len(text.encode("utf-8", _ERRORS))


def without_mark(data: bytes) -> bytes:
    """The first bytes of a source without a byte-order mark."""
    return data.removeprefix(codecs.BOM_UTF8)


def without_final_newline(text: str) -> str:
    """``text`` without one line end at its end."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\r\n") else text.removesuffix("\n")


def clean(text: str) -> tuple[str, int]:
    """``text`` with U+FFFD for what a model cannot read, and how often it stands there."""
    return _BAD.subn(REPLACEMENT, text)


def cleaned(text: str) -> str:
    """`clean` for who does not count."""
    return clean(text)[0]


def bad_bytes(source: str, count: int) -> str:
    """What is to be said of ``count`` bytes that `clean` replaced."""
    return f"{source} has {'a byte that is' if count == 1 else f'{count} bytes that are'} NUL or no UTF-8"
