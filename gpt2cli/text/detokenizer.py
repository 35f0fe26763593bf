"""Token ids to text, one at a time, whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.text.tokenizer import Tokenizer

_WINDOW = 128


class Detokenizer:
    """``push`` joined over the ids, and ``flush`` at the end, equals ``Tokenizer.decode`` of them all.

    A character whose bytes are spread over several tokens comes out when it is whole; bytes that can
    no longer become a character come out as U+FFFD, where the full decode has one too. A run of byte tokens
    (``<0xF0>``) is decoded as a whole, so it comes out when it has ended. With a ``prompt`` it is the text
    that the ids add to that of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = tokenizer.context_of(prompt)
        self._shown = tokenizer.decode(self._ids) if self._ids else ""

    def push(self, token_id: int) -> str:
        """The text that becomes certain with this token."""
        if token_id in self._tokenizer.hidden:
            return ""
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
