"""Token ids to text, one at a time, whole characters only."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.text.tokenizer import Tokenizer


class Detokenizer:
    """``push`` joined over the ids, and ``flush`` at the end, equals ``Tokenizer.decode`` of them all.

    A character whose bytes are spread over several tokens comes out when it is whole; bytes that can
    no longer become a character come out as U+FFFD, where the full decode has one too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stream = None if tokenizer.byte_level else tokenizer.decode_stream()

    def push(self, token_id: int) -> str:
        """The text that becomes certain with this token."""
        if self._stream is not None:
            return self._stream(token_id)
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What an unfinished character decodes to."""
        if self._stream is not None:
            return ""
        return self._utf8.decode(b"", final=True)
