"""Text to token ids and back, over the ``tokenizers`` library.

GPT-2's byte-level BPE (Radford et al. 2019) writes each byte as a printable character; a token is a
string of those. `gpt2cli.text.tokenizer_files` reads a tokenizer from its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.text.parts import TextPart, continuing, spans
from gpt2cli.text.token_bytes import BYTE_TOKEN, reader_of
from gpt2cli.text.tokenizer_files import hides_special_tokens, library_errors, read_backend

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
    but their text is decoded by the library and not byte by byte. ``hidden`` are the ids of special
    tokens that texts leave out; none in a GPT-2.
    """

    def __init__(self, backend: Any, *, hides_special: bool = False) -> None:
        from tokenizers import decoders

        self._backend = backend
        self.hidden: frozenset[int] = frozenset(self._special if hides_special else ())
        self._bytes: dict[int, bytes] = {}
        self.byte_level = isinstance(backend.decoder, decoders.ByteLevel)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer | None:
        """The tokenizer of a model directory; None where there is none.

        Raises `ModelFileError` when its files are damaged.
        """
        backend = read_backend(directory)
        return None if backend is None else cls(backend, hides_special=hides_special_tokens(directory))

    @cached_property
    def _special(self) -> dict[int, str]:
        """The special tokens."""
        added = self._backend.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

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

    def encode(
        self, text: str, *, special_tokens: bool = False, template: bool = True, continues: bool = False
    ) -> list[int]:
        """The ids of ``text``.

        With ``special_tokens`` a special token written in the text (``<|endoftext|>``) becomes its id,
        else it is plain text. With ``template`` there are the ids that the tokenizer puts around a text, as
        Llama's bos; a text that ``continues`` another has none, and no space is put before it. Raises
        `UsageError` when the vocabulary cannot write a character of the text: the library would drop it
        silently.
        """
        self._check_writable(text, special_tokens)
        backend = self._continuing if continues else self._backend
        return self._ids_of(backend, text, special_tokens, template and not continues)

    def encode_parts(self, parts: Sequence[TextPart], *, continues: bool = False) -> list[int]:
        """The ids of all ``parts`` as one text, whose special tokens are tokens in its trusted parts only.

        There is nothing around it that a template for texts would put. Raises as `encode` does.
        """
        whole = "".join(part.text for part in parts)
        for part in parts:
            self._check_writable(part.text, special_tokens=part.trusted)
        backend = self._after_special if continues else self._backend
        backend.encode_special_tokens = False
        with library_errors("the model's tokenizer cannot read this prompt", UsageError):
            if len(whole) <= _SHORT:
                encoding = backend.encode(whole, add_special_tokens=False)
            else:
                (encoding,) = backend.encode_batch([whole], add_special_tokens=False)
        ids: list[int] = []
        for span in spans(encoding, whole, parts, self._special):
            text = whole[span.begin : span.end]
            if span.special or not text:
                ids += span.ids
            elif span.begin == 0 and continues:
                ids += self._ids_of(self._continuing, text, False, False)
            elif span.sound:
                ids += span.ids
            else:
                ids += self._ids_of(self._after_special if span.begin else backend, text, False, False)
        return ids

    def _ids_of(self, backend: Any, text: str, special_tokens: bool, template: bool) -> list[int]:
        backend.encode_special_tokens = not special_tokens
        with library_errors("the model's tokenizer cannot read this prompt", UsageError):
            if len(text) <= _SHORT:
                ids: list[int] = backend.encode(text, add_special_tokens=template).ids
            else:
                (encoding,) = backend.encode_batch_fast([text], add_special_tokens=template)
                ids = encoding.ids
        return ids

    @cached_property
    def _continuing(self) -> Any:
        return continuing(self._backend)

    @cached_property
    def _after_special(self) -> Any:
        return continuing(self._backend, after_special=True)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens read as plain text; on several threads.

        Raises `UsageError` as `encode` does.
        """
        for text in texts:
            self._check_writable(text, special_tokens=False)
        self._backend.encode_special_tokens = True
        with library_errors("the model's tokenizer cannot read this text", UsageError):
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False, continues: bool = False) -> str:
        """The text of ``ids``; what is no UTF-8 becomes U+FFFD.

        Without ``special_tokens``, those that are `hidden` are left out. What ``continues`` a text keeps the
        space that no text begins with.
        """
        visible = [each for each in ids if special_tokens or each not in self.hidden] if self.hidden else ids
        if self.byte_level:
            return b"".join(map(self.token_bytes, visible)).decode("utf-8", "replace")
        if not continues:
            return self._decoded(visible)
        before = self._decoded(self._anchor)
        text = self._decoded([*self._anchor, *visible])
        return text[len(before) :] if text.startswith(before) else self._decoded(visible)

    def _decoded(self, ids: Sequence[int]) -> str:
        with library_errors("the model's tokenizer cannot write its tokens"):
            text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    @cached_property
    def _anchor(self) -> list[int]:
        """The last token of a text, after which others are looked at."""
        ids = self._ids_of(self._backend, "a", False, False)
        whole = (each for each in ids if not (each in self._special or self.is_part_of_character(each)))
        return list(whole)[-1:]

    def context_of(self, ids: Sequence[int]) -> list[int]:
        """Of the ids of a prompt, the last one on which the text of the next depends; none or one."""
        if self.byte_level:
            return []
        last = next((each for each in reversed(ids) if each not in self.hidden), None)
        if last is None:
            return []
        # A run of byte tokens is decoded as a whole: what is drawn begins its own.
        return self._anchor if self.is_part_of_character(last) else [last]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token in the middle of a text, a space before or behind a word included; none for
        an id that the tokenizer does not know.
        """
        known = self._bytes.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id)
            if self.byte_level or token is None:
                known = _bytes_of(token)
            elif token_id in self._special:
                known = token.encode("utf-8", "replace")
            elif self._read_token is not None:
                known = self._read_token(token)
            else:
                known = self._decoded([token_id]).encode("utf-8", "replace")
            self._bytes[token_id] = known
        return known

    @cached_property
    def _read_token(self) -> Callable[[str], bytes] | None:
        return reader_of(self._backend.decoder)

    def is_part_of_character(self, token_id: int) -> bool:
        """Whether the token ends nothing, in a tokenizer that is not ``byte_level``: it stands for one
        byte (``<0xF0>``), or is none.
        """
        token = self._backend.id_to_token(token_id)
        return token is None or bool(BYTE_TOKEN.fullmatch(token))

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


def _bytes_of(token: str | None) -> bytes:
    """The bytes of a byte-level token."""
    if token is None:
        return b""
    alphabet = byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode("utf-8", "replace")
