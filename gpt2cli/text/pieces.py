"""A long text in pieces whose ids are those of the whole: what a file of any size is tokenised by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpt2cli.text.reading import clean, encoded_size, make_decoder, without_final_newline, without_mark
from gpt2cli.text.tokenizer import Tokenizer

PIECE_BYTES = 2**14

Read = Callable[[int], bytes]
"""Reads at most so many bytes, and none at the end, as ``file.read`` does."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text."""

    text: str
    offset: int
    """Where it begins in the text, in bytes."""
    bad: int
    """Bytes that were NUL or no UTF-8, replaced by U+FFFD."""


def safe_cut(text: str) -> int:
    """The last place before a space or a line end that follows another character; 0 if there is none."""
    at = len(text)
    while True:
        at = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at))
        if at <= 0:
            return 0
        if not text[at - 1].isspace():
            return at


def read_pieces(
    read: Read, tokenizer: Tokenizer, *, offset: int = 0, keep_end: bool = False
) -> Iterator[Piece]:
    """The text behind ``read``, without a byte-order mark and, unless ``keep_end``, one final newline.

    Where `Tokenizer.cuts_before_space` is false, or the text has no such place, it comes in one piece:
    then it is held as a whole. ``offset`` is where ``read`` begins, in bytes: the end of a piece, or 0.
    """
    decoder = make_decoder()
    text, ended = "", False
    if offset == 0:
        block = read(PIECE_BYTES)
        first = without_mark(block)
        offset = len(block) - len(first)
        text, ended = decoder.decode(first), not block
    while not ended:
        # What is kept has no place for a cut, or is one character at least: so much more is read.
        data = read(max(PIECE_BYTES, len(text)))
        ended = not data
        text += decoder.decode(data, ended)
        cut = safe_cut(text) if tokenizer.cuts_before_space and not ended else 0
        if cut:
            yield _piece(text[:cut], offset)
            offset += encoded_size(text[:cut])
            text = text[cut:]
    if not keep_end:
        text = without_final_newline(text)
    if text:
        yield _piece(text, offset)


def _piece(text: str, offset: int) -> Piece:
    cleaned, bad = clean(text)
    return Piece(cleaned, offset, bad)
