"""Text to token ids and back, over the ``tokenizers`` library.

GPT-2's byte-level BPE (Radford et al. 2019) writes each byte as a printable character; a token is a
string of those. `gpt2cli.text.tokenizer_files` reads a tokenizer from its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer_files import library_errors, read_backend

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

_SHORT = 2**13
"""Characters of a text that the library may hold up other threads for; with a batch it never does."""


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, to the byte (``bytes_to_unicode`` of the released code)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


class Tokenizer:
    """One model's tokenizer.

    ``byte_level`` says whether a token is a string of bytes, as in GPT-2; other kinds work as well,
    but their text is decoded by the library and not byte by byte.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers import decoders

        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self.byte_level = isinstance(backend.decoder, decoders.ByteLevel)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer | None:
        """The tokenizer of a model directory; None where there is none.

        Raises `ModelFileError` when its files are damaged.
        """
        backend = read_backend(directory)
        return None if backend is None else cls(backend)

    @cached_property
    def longest_token(self) -> int | None:
        """The most characters that one token stands for; None where the library may drop characters."""
        if not self.byte_level or self._backend.normalizer is not None:
            return None
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether an id stands for the same token in both."""
        return self.byte_level == other.byte_level and self._vocabulary == other._vocabulary

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        table: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return table

    @cached_property
    def cuts_before_space(self) -> bool:
        """Whether a text may be cut before a space or a line end that follows a character that is none:
        the ids of the parts are then the ids of the whole.

        So it is for GPT-2's own kind. Its pattern (``'s|'t|…| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|
        \\s+(?!\\S)|\\s+``) has no alternative that goes on from another character to white space, and none
        that looks back: a match always ends, and begins anew, at such a place. Merges stay within a match.
        """
        backend = self._backend
        if backend.normalizer is not None or type(backend.model).__name__ != "BPE" or backend.model.dropout:
            return False
        if not _is_byte_level(backend.pre_tokenizer, add_prefix_space=False, use_regex=True):
            return False
        if backend.post_processor is not None and not _is_byte_level(backend.post_processor):
            return False
        return not any(
            token.lstrip or token.rstrip or token.single_word or any(char.isspace() for char in token.content)
            for token in backend.get_added_tokens_decoder().values()
        )

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The ids of ``text``.

        With ``special_tokens`` a special token written in the text (``<|endoftext|>``) becomes its id,
        else it is plain text. Raises `UsageError` when the vocabulary cannot write a character of
        the text: the library would drop it silently.
        """
        self._check_writable(text, special_tokens)
        self._backend.encode_special_tokens = not special_tokens
        with library_errors("the model's tokenizer cannot read this prompt", UsageError):
            if len(text) <= _SHORT:
                ids: list[int] = self._backend.encode(text).ids
            else:
                (encoding,) = self._backend.encode_batch_fast([text])
                ids = encoding.ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens read as plain text; on several threads.

        Raises `UsageError` as `encode` does.
        """
        for text in texts:
            self._check_writable(text, special_tokens=False)
        self._backend.encode_special_tokens = True
        with library_errors("the model's tokenizer cannot read this text", UsageError):
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included; what is no UTF-8 becomes U+FFFD."""
        if not self.byte_level:
            with library_errors("the model's tokenizer cannot write its tokens"):
                text: str = self._backend.decode(list(ids), skip_special_tokens=False)
            return text
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer does not know."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = _bytes_of(self._backend.id_to_token(token_id), self.byte_level)
        return known

    def is_part_of_character(self, token_id: int) -> bool:
        """Whether the token ends nothing, in a tokenizer that is not ``byte_level``: it stands for one
        byte (``<0xF0>``), or is none.
        """
        token = self._backend.id_to_token(token_id)
        return token is None or bool(_BYTE_TOKEN.fullmatch(token))

    @cached_property
    def _unwritable(self) -> frozenset[int]:
        """The bytes that no token can write."""
        if not self.byte_level:
            return frozenset()
        known = self._backend.token_to_id
        return frozenset(byte for char, byte in byte_alphabet().items() if known(char) is None)

    def _check_writable(self, text: str, special_tokens: bool) -> None:
        missing = self._unwritable
        if not missing:
            return
        for token in self._backend.get_added_tokens_decoder().values():
            if special_tokens or not token.special:
                text = text.replace(token.content, "")
        if missing.isdisjoint(text.encode("utf-8", "replace")):
            return
        char = next(c for c in text if not missing.isdisjoint(c.encode("utf-8", "replace")))
        raise UsageError(
            f"the model has no token for the character {char!r} (U+{ord(char):04X})",
            hint="this model knows only a small alphabet; leave the character out of the prompt",
        )


def _is_byte_level(component: Any, **fields: bool) -> bool:
    """Whether a part of the tokenizer is GPT-2's, with these ``fields``."""
    if component is None:
        return False
    state = json.loads(component.__getstate__())
    return state.get("type") == "ByteLevel" and all(state.get(name, True) is fields[name] for name in fields)


def _bytes_of(token: str | None, byte_level: bool) -> bytes:
    if token is None:
        return b""
    if byte_level:
        alphabet = byte_alphabet()
        if all(char in alphabet for char in token):
            return bytes(alphabet[char] for char in token)
    return token.encode("utf-8", "replace")
