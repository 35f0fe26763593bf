"""Ids to text, one at a time: the joined stream is the full decode, and only whole characters come."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import shared

from gpt2cli.text.detokenizer import Detokenizer
from gpt2cli.text.tokenizer import Tokenizer, byte_alphabet

EMOJI = "👩‍👩‍👧👍🏽🏳️‍🌈😀é字한ß\U0010ffff"
BYTES = range(256)
END_OF_TEXT_ID = 50256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_directory(shared("tokenizer_gpt2"))
    assert found is not None
    return found


def sequences(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Seeded ids: emoji cut into bytes and damaged, raw byte tokens, whole tokens, special ones, none."""
    rng = random.Random(0)
    # The ids of the single bytes are 0 … 255, in another order.
    id_of = {tokenizer.token_bytes(token): token for token in BYTES}

    def piece() -> list[int]:
        kind = rng.random()
        if kind < 0.4:
            ids = [id_of[bytes([byte])] for char in rng.choices(EMOJI, k=2) for byte in char.encode()]
            if rng.random() < 0.5:
                del ids[rng.randrange(len(ids))]
            return ids
        if kind < 0.5:
            return tokenizer.encode("".join(rng.choices(EMOJI, k=3)))
        if kind < 0.75:
            return rng.choices(BYTES, k=rng.randint(1, 6))
        return rng.choice([[END_OF_TEXT_ID], [50257], [rng.randrange(50257)], tokenizer.encode(" the cat")])

    return [[i for _ in range(rng.randint(1, 6)) for i in piece()] for _ in range(count)]


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What comes out at each token, and at the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def check_stream(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Joined it is the full decode, and at no time has more been shown than that begins with."""
    whole, shown = tokenizer.decode(ids), ""
    for text in stream(tokenizer, ids):
        shown += text
        assert whole.startswith(shown), ids
    assert shown == whole, ids


def test_the_joined_stream_is_the_full_decode(tokenizer: Tokenizer) -> None:
    """Decoding token by token shows U+FFFD for every piece of an emoji."""
    damaged = 0
    for ids in sequences(tokenizer, 2000):
        check_stream(tokenizer, ids)
        damaged += "\ufffd" in tokenizer.decode(ids)
    assert 500 < damaged < 2000


def test_the_full_decode_is_that_of_transformers(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(shared("tokenizer_gpt2"))
    for ids in sequences(tokenizer, 2000):
        known = [i for i in ids if i <= END_OF_TEXT_ID]
        assert tokenizer.decode(known) == reference.decode(known, skip_special_tokens=False), ids


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    id_of = {tokenizer.token_bytes(token): token for token in BYTES}
    ids = [id_of[bytes([byte])] for byte in "a😀b".encode()]
    assert stream(tokenizer, ids) == ["a", "", "", "", "😀", "b", ""]
    assert stream(tokenizer, ids[:3]) == ["a", "", "", "\ufffd"]
    assert stream(tokenizer, [*ids[:3], ids[-1]]) == ["a", "", "", "\ufffdb", ""]


def test_no_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, []) == [""]


def test_character_models_stream_too() -> None:
    for model in ("slm_4096_kunal", "makemore_names_lmj9"):
        found = Tokenizer.from_directory(shared("models", model, "hf"))
        assert found is not None
        rng = random.Random(0)
        for _ in range(100):
            check_stream(found, rng.choices(range(60), k=20))


VOCABULARY = [
    "<unk>",
    "a",
    "ab",
    "▁",
    "▁a",
    "▁the",
    "##b",
    "##ing",
    "b</w>",
    "é",
    "字",
    "😀",
    ".",
    "n't",
    "\ufffd",
    " ",
    *(f"<0x{byte:02X}>" for byte in "😀é".encode()),
    "<0x61>",
    *(symbol for symbol, byte in byte_alphabet().items() if byte in "😀é".encode() and symbol != "é"),
]


def word_level(tokenizers: Any) -> tuple[Any, Any]:
    return tokenizers.models.WordLevel(ids_of_all(), unk_token="<unk>"), None


def metaspace(tokenizers: Any) -> tuple[Any, Any]:
    return tokenizers.models.BPE(ids_of_all(), []), tokenizers.decoders.Metaspace()


def word_piece(tokenizers: Any) -> tuple[Any, Any]:
    return tokenizers.models.WordPiece(ids_of_all(), unk_token="<unk>"), tokenizers.decoders.WordPiece()


def bpe_suffix(tokenizers: Any) -> tuple[Any, Any]:
    return tokenizers.models.BPE(ids_of_all(), []), tokenizers.decoders.BPEDecoder("</w>")


def unigram(tokenizers: Any) -> tuple[Any, Any]:
    vocab = [(token, -1.0) for token in VOCABULARY]
    return tokenizers.models.Unigram(vocab, 0, False), tokenizers.decoders.Fuse()


def byte_fallback(tokenizers: Any) -> tuple[Any, Any]:
    """As in Llama: a run of byte tokens that is no UTF-8 as a whole becomes one U+FFFD a byte."""
    of = tokenizers.decoders
    decoder = of.Sequence([of.Replace("▁", " "), of.ByteFallback(), of.Fuse(), of.Strip(" ", 1, 0)])
    return tokenizers.models.BPE(ids_of_all(), [], byte_fallback=True), decoder


def byte_level_in_a_sequence(tokenizers: Any) -> tuple[Any, Any]:
    """Bytes as in GPT-2, but in a place where we do not look for them."""
    return tokenizers.models.BPE(ids_of_all(), []), tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel()]
    )


def ids_of_all() -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(VOCABULARY)}


@pytest.mark.parametrize(
    "build",
    [word_level, metaspace, word_piece, bpe_suffix, unigram, byte_fallback, byte_level_in_a_sequence],
)
def test_other_kinds_of_tokenizers(build: Callable[[Any], tuple[Any, Any]], tmp_path: Path) -> None:
    """The library's own stream loses the end of a text, or raises, where byte tokens make no character."""
    import tokenizers

    model, decoder = build(tokenizers)
    backend = tokenizers.Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    assert not found.byte_level
    rng = random.Random(0)
    for _ in range(500):
        ids = rng.choices(range(len(VOCABULARY) + 1), k=rng.randint(0, 12))
        assert found.decode(ids) == backend.decode(ids, skip_special_tokens=False)
        check_stream(found, ids)


def test_a_long_text_of_another_kind(tmp_path: Path) -> None:
    """Each token decodes a window again and not the whole text: that would take for ever."""
    import tokenizers

    model, decoder = byte_fallback(tokenizers)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_directory(tmp_path)
    assert found is not None
    check_stream(found, random.Random(0).choices(range(len(VOCABULARY)), k=5000))
