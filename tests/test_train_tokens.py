"""Token files: what is trained on is what the tokenizer makes of each document, and nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import END_OF_TEXT_ID, write_byte_tokenizer

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.train import tokens
from gpt2cli.train.documents import DocumentPiece
from gpt2cli.train.tokens import TokenSet, cached, write_tokens

RECIPE = {"data": "a test", "share": 0.1}
PIECES = [
    (DocumentPiece("one", True), False),
    (DocumentPiece("held bäck", True), True),
    (DocumentPiece(" and more", False), True),
    (DocumentPiece("日本<|endoftext|>", True), False),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    found = Tokenizer.from_directory(directory)
    assert found is not None
    return found


def write(tokenizer: Tokenizer, pieces: Any = PIECES, **changes: Any) -> TokenSet:
    options = {"end_of_text": END_OF_TEXT_ID, "vocab_size": 257, **changes}
    return write_tokens(RECIPE, iter(pieces), tokenizer, **options)


def left() -> list[str]:
    """The names in the token cache."""
    folder = paths.cache_dir() / "tokens"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_each_document_as_if_alone(tokenizer: Tokenizer) -> None:
    """End-of-text stands before every document, never between its pieces; typed in a text it is text."""
    made = write(tokenizer)
    train = [END_OF_TEXT_ID, *tokenizer.encode("one"), END_OF_TEXT_ID, *tokenizer.encode("日本<|endoftext|>")]
    assert made.train.map().tolist() == train
    assert train.count(END_OF_TEXT_ID) == 2
    assert made.validation.map().tolist() == [END_OF_TEXT_ID, *tokenizer.encode("held bäck and more")]
    assert (made.train.documents, made.validation.documents) == (2, 1)
    assert made.train.tokens == len(train)


def test_sizes_are_bytes(tokenizer: Tokenizer) -> None:
    """Bits per byte would be wrong for every other language."""
    made = write(tokenizer)
    assert made.train.size == len(b"one") + len("日本<|endoftext|>".encode())
    assert made.validation.size == len("held bäck and more".encode())


def test_without_end_of_text(tokenizer: Tokenizer) -> None:
    made = write(tokenizer, end_of_text=None)
    assert made.train.map().tolist() == tokenizer.encode("one") + tokenizer.encode("日本<|endoftext|>")


@pytest.mark.parametrize("limit", [("BATCH_CHARS", 10), ("BATCH_TEXTS", 1), ("BATCH_TEXTS", 3)])
def test_batches_change_nothing(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    whole = write(tokenizer)
    expected = whole.train.map().tolist(), whole.validation.map().tolist()
    monkeypatch.setattr(tokens, *limit)
    made = write(tokenizer)
    assert (made.train.map().tolist(), made.validation.map().tolist()) == expected


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4")])
def test_width_of_an_id(tokenizer: Tokenizer, vocab_size: int, dtype: str) -> None:
    made = write(tokenizer, vocab_size=vocab_size)
    ids = made.train.map()
    assert ids.dtype == np.dtype(dtype)
    assert made.train.path.stat().st_size == len(ids) * ids.dtype.itemsize
    assert ids.tolist() == write(tokenizer).train.map().tolist()


class BigTokenizer:
    """Every text is one id, its number."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(text)] for text in texts]


def test_ids_above_65535() -> None:
    numbers = [0, 65_535, 65_536, 99_999]
    pieces = [(DocumentPiece(str(n), False), False) for n in numbers]
    made = write(BigTokenizer(), pieces, vocab_size=100_000)  # type: ignore[arg-type]
    assert made.train.map().tolist() == numbers


def test_more_entries_than_the_model_has(tokenizer: Tokenizer) -> None:
    """An id outside the embedding would end the training with an IndexError."""
    with pytest.raises(UsageError, match="vocabulary of 100"):
        write(tokenizer, vocab_size=100)
    assert left() == []


def test_an_empty_side(tokenizer: Tokenizer) -> None:
    """A file of no bytes cannot be mapped."""
    made = write(tokenizer, PIECES[:1])
    assert made.validation.tokens == 0
    assert made.validation.map().tolist() == []


def test_ids_are_mapped_not_read(tokenizer: Tokenizer) -> None:
    ids = write(tokenizer).train.map()
    assert isinstance(ids, np.memmap)
    assert not ids.flags.writeable


def test_cache(tokenizer: Tokenizer) -> None:
    """The same recipe finds the tokens, another does not."""
    assert cached(RECIPE) is None
    made = write(tokenizer)
    assert cached(RECIPE) == made
    assert cached(dict(reversed(RECIPE.items()))) == made
    assert cached({**RECIPE, "share": 0.2}) is None
    assert len(left()) == 1


def truncate(folder: Path) -> None:
    with (folder / "train.bin").open("r+b") as file:
        file.truncate(3)


def no_json(folder: Path) -> None:
    (folder / "meta.json").write_bytes(b"\xff{")


def other_json(folder: Path) -> None:
    (folder / "meta.json").write_text("[1]")


def other_keys(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps({"train": {"tokens": 1}, "validation": {}}))


def other_type(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["train"]["dtype"] = "no type"
    (folder / "meta.json").write_text(json.dumps(meta))


def no_file(folder: Path) -> None:
    (folder / "validation.bin").unlink()


@pytest.mark.parametrize("damage", [truncate, no_json, other_json, other_keys, other_type, no_file])
def test_a_damaged_cache_is_made_again(tokenizer: Tokenizer, damage: Any) -> None:
    made = write(tokenizer)
    expected = made.train.map().tolist()
    damage(made.train.path.parent)
    assert cached(RECIPE) is None
    again = write(tokenizer)
    assert again == made
    assert again.train.map().tolist() == expected
    assert len(left()) == 1


def test_data_that_fails_leaves_nothing(tokenizer: Tokenizer) -> None:
    def pieces() -> Iterator[tuple[DocumentPiece, bool]]:
        yield from PIECES
        raise UsageError("not UTF-8")

    with pytest.raises(UsageError, match="not UTF-8"):
        write(tokenizer, pieces())
    assert left() == []


def test_a_full_disk_leaves_nothing(tokenizer: Tokenizer) -> None:
    """A limit on the size of a file fails in `write` as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    pieces = [(DocumentPiece("x" * 100_000, True), False)] * 30
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(Gpt2cliError, match="cannot write tokens") as caught:
            write(tokenizer, pieces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 1
    assert left() == []


def test_a_cache_that_is_a_file(tokenizer: Tokenizer) -> None:
    paths.cache_dir().parent.mkdir(parents=True, exist_ok=True)
    paths.cache_dir().write_text("in the way")
    with pytest.raises(Gpt2cliError, match="cannot write tokens"):
        write(tokenizer)
    assert paths.cache_dir().read_text() == "in the way"


def test_two_at_the_same_time(tokenizer: Tokenizer) -> None:
    """The slower process failed when the other had put the same tokens there."""
    other = write(tokenizer)
    kept = other.train.path.parent.with_name("kept")
    other.train.path.parent.rename(kept)

    original = shutil.rmtree

    def rmtree(path: Path, **kwargs: Any) -> None:
        original(path, **kwargs)
        if path == other.train.path.parent:
            kept.rename(path)

    other.train.path.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens.shutil, "rmtree", rmtree)
        made = write(tokenizer)
    assert made == other
    assert len(left()) == 1
