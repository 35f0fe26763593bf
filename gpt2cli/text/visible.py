"""How a token is shown to the eye: with a sign for all that would not be seen, everywhere the same.

Output for other programs has tokens as JSON or Python writes them; this is for people.
"""

from __future__ import annotations

from functools import lru_cache

from gpt2cli.text.sanitize import sanitize
from gpt2cli.text.tokenizer import Tokenizer

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x0A: "↵", 0x09: "⇥", 0x7F: "␡"}


def visible(text: str) -> str:
    """``text`` with a picture for each control character: nothing a terminal acts on, nothing unseen.

    A newline becomes ``↵``, a tab ``⇥``, ESC ``␛``; what else may not be shown becomes U+FFFD.
    """
    return "".join(map(_visible, text))


@lru_cache(maxsize=4096)
def _visible(char: str) -> str:
    pictured = _PICTURES.get(ord(char), char)
    return "\ufffd" if pictured in "\ufffe\uffff" else sanitize(pictured) or "\ufffd"


def quoted(text: str) -> str:
    """A token among other things: between marks, so that its spaces are seen."""
    return f"'{visible(text)}'"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; one that is part of a character as its bytes, such as ``\\xf0\\x9f``."""
    text = tokenizer.decode([token])
    if "\ufffd" in text and tokenizer.byte_level:
        data = tokenizer.token_bytes(token)
        if data.decode("utf-8", "ignore").encode() != data:
            return "".join(f"\\x{byte:02x}" for byte in data)
    return text
