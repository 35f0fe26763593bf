"""Token ids to text, one at a time, whole characters only."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.text.tokenizer import Tokenizer

_WINDOW = 512


class Detokenizer:
    """``push`` joined over the ids, and ``flush`` at the end, equals ``Tokenizer.decode`` of them all.

    A character whose bytes are spread over several tokens comes out when it is whole; bytes that can
    no longer become a character come out as U+FFFD, where the full decode has one too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        """The text that becomes certain with this token."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token_id))
        self._ids.append(token_id)
        if self._tokenizer.is_part_of_character(token_id):
            return ""
        return self._grow(final=False)

    def flush(self) -> str:
        """What an unfinished character decodes to."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._grow(final=True)

    def _grow(self, *, final: bool) -> str:
        """What the library's decode of the last ids has more than before.

        It decides over characters and spaces with regard to the tokens before, so all of a window
        is decoded again.
        """
        text = self._tokenizer.decode(self._ids)
        if not final and (text.endswith("\ufffd") or not text.startswith(self._shown)):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if len(self._ids) > _WINDOW:
            self._ids = self._ids[-_WINDOW // 2 :]
            self._shown = self._tokenizer.decode(self._ids)
        return new
