"""What a model can read of bytes, and what is said of the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.text.reading import (
    bad_bytes,
    clean,
    decode,
    encoded_size,
    make_decoder,
    without_final_newline,
    without_mark,
)


@given(st.binary())
def test_every_byte_is_read_or_counted(data: bytes) -> None:
    text = decode(data)
    assert encoded_size(text) == len(data)
    cleaned, bad = clean(text)
    assert len(cleaned) == len(text) and not set(cleaned) & {"\0", *map(chr, range(0xD800, 0xE000))}
    assert bad == sum(a != b for a, b in zip(text, cleaned, strict=True))
    if bad == 0:
        assert cleaned.encode() == data


@given(st.binary(), st.integers(0, 50))
def test_blocks_are_the_whole(data: bytes, at: int) -> None:
    decoder = make_decoder()
    assert decoder.decode(data[:at]) + decoder.decode(data[at:], True) == decode(data)


def test_marks_and_line_ends() -> None:
    assert without_mark(b"\xef\xbb\xbfa\xef\xbb\xbf") == b"a\xef\xbb\xbf"
    found = [without_final_newline(text) for text in ("a", "a\n", "a\r\n", "a\n\n", "a\r", "\n", "")]
    assert found == ["a", "a", "a", "a\n", "a\r", "", ""]


def test_a_byte_and_bytes() -> None:
    assert bad_bytes("x.txt", 1) == "x.txt has a byte that is NUL or no UTF-8"
    assert bad_bytes("x.txt", 2) == "x.txt has 2 bytes that are NUL or no UTF-8"
