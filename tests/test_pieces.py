"""A text in pieces has the ids of the whole."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from support import shared, write_byte_tokenizer

from gpt2cli.text import pieces
from gpt2cli.text.pieces import read_pieces, safe_cut
from gpt2cli.text.tokenizer import Tokenizer

ALPHABET = [
    *" \n\t\r'sdtllvem.,!?0129éß漢字😀\u3000\xa0\u2028\x85\x1c\x00",
    *[" "] * 8,
    *["\n"] * 3,
    "'ll",
    "'s",
    "<|endoftext|>",
]


def gpt2() -> Tokenizer:
    found = Tokenizer.from_directory(shared("tokenizer_gpt2"))
    assert found is not None
    return found


def ids_of(data: bytes, tokenizer: Tokenizer) -> list[int]:
    read = read_pieces(io.BytesIO(data).read, tokenizer)
    return [token for piece in read for token in tokenizer.encode(piece.text)]


def test_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces of all kinds, contractions, characters of several bytes at every cut; from the middle too."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 16)
    tokenizer, pick = gpt2(), random.Random(5)
    several = 0
    for _ in range(1500):
        text = "".join(pick.choice(ALPHABET) for _ in range(pick.randrange(1, 200)))
        data = text.encode()
        kept = text.removesuffix("\n")
        wanted = tokenizer.encode((kept.removesuffix("\r") if text != kept else kept).replace("\0", "\ufffd"))
        assert ids_of(data, tokenizer) == wanted, text
        found = list(read_pieces(io.BytesIO(data).read, tokenizer))
        if len(found) > 1:
            several += 1
            at = pick.randrange(1, len(found))
            rest = io.BytesIO(data[found[at].offset :])
            again = list(read_pieces(rest.read, tokenizer, offset=found[at].offset))
            wanted = [token for piece in found[at:] for token in tokenizer.encode(piece.text)]
            assert [token for piece in again for token in tokenizer.encode(piece.text)] == wanted
            assert all(
                data[piece.offset :].startswith(piece.text.encode()[:1]) for piece in again if not piece.bad
            )
    assert several > 800


def test_a_long_text() -> None:
    tokenizer = gpt2()
    data = shared("texts", "wiki.test.raw").read_bytes()
    assert ids_of(data, tokenizer) == tokenizer.encode(data.decode().removesuffix("\n"))
    assert len(list(read_pieces(io.BytesIO(data).read, tokenizer))) > 15


def test_reads_that_give_a_byte_at_a_time() -> None:
    """A pipe gives what it has."""
    tokenizer = gpt2()
    data = "Ein schöner Text, mit 漢字 und 😀.\nUnd noch eine Zeile.\n".encode()
    source = io.BytesIO(data)
    found = list(read_pieces(lambda limit: source.read(1), tokenizer))
    assert [t for piece in found for t in tokenizer.encode(piece.text)] == ids_of(data, tokenizer)
    assert len(found) > 1 and sum(piece.bad for piece in found) == 0


@pytest.mark.parametrize(
    ("data", "text", "bad"),
    [
        (b"\xef\xbb\xbfab\n", "ab", 0),
        (b"ab\r\n", "ab", 0),
        (b"ab\n\n", "ab\n", 0),
        (b"a\xffb\x00", "a\ufffdb\ufffd", 2),
        (b"", "", 0),
        (b"\n", "", 0),
    ],
)
def test_what_is_dropped_and_replaced(data: bytes, text: str, bad: int, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer is not None
    found = list(read_pieces(io.BytesIO(data).read, tokenizer))
    assert "".join(piece.text for piece in found) == text
    assert sum(piece.bad for piece in found) == bad


def test_keep_end(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer is not None
    read = read_pieces(io.BytesIO(b"ab\n").read, tokenizer, keep_end=True)
    assert "".join(piece.text for piece in read) == "ab\n"


def test_safe_cut() -> None:
    assert safe_cut("ab cd ef") == 5
    assert safe_cut("ab  \n") == 2
    assert safe_cut("ab\u3000 cd") == 0
    assert safe_cut("  ab") == 0
    assert safe_cut("") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {
            "added_tokens": [
                {
                    "id": 3,
                    "content": "a b",
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ]
        },
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_tokenizers_read_the_whole(change: dict[str, object], tmp_path: Path) -> None:
    """Where nothing is known of the pattern, no cut is safe."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2}, "merges": []}
    table = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    plain = Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**table, **change}))
    other = Tokenizer.from_directory(tmp_path)
    assert plain is not None and other is not None
    assert plain.cuts_before_space and not other.cuts_before_space
    text = b"a b " * 40_000
    assert len(list(read_pieces(io.BytesIO(text).read, plain))) > 1
    assert len(list(read_pieces(io.BytesIO(text).read, other))) == 1
