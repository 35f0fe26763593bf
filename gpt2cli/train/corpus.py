"""The data of a training: sources, split, tokens, and what the model card says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.model_files import TOKENIZER_FILE, VOCABULARY_FILES
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.train.documents import DocumentPiece, Source, Survey, find_sources, read_pieces, survey
from gpt2cli.train.options import DataOptions
from gpt2cli.train.split import Split, divide, make_split
from gpt2cli.train.tokens import TokenFile, TokenSet, cached, write_tokens

MIN_BYTES = 1000
"""The least training text: with less there is nothing to learn."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text that was found and surveyed, and how it is divided."""

    options: DataOptions
    sources: tuple[Source, ...]
    validation_sources: tuple[Source, ...]
    test_sources: tuple[Source, ...]
    found: Survey
    split: Split

    @classmethod
    def open(cls, options: DataOptions) -> Corpus:
        """Read all of it once. Raises `UsageError` for what is no text, or too little."""
        sources = find_sources(options.data)
        apart = find_sources(options.validation_data)
        tests = find_sources(options.test_data)

        def surveyed(files: list[Source]) -> Survey:
            return survey(piece for file in files for piece in _pieces(file, options))

        found, kept_apart = surveyed(sources), surveyed(apart)
        tested = [surveyed([file]) for file in tests]
        for file, test in zip(tests, tested, strict=True):
            if not test.size:
                raise UsageError(f"{file.path}: there is no text in it to score")
        excluded = frozenset((*kept_apart.keys, *(key for test in tested for key in test.keys)))
        share = 0.0 if apart else options.validation
        corpus = cls(
            options,
            tuple(sources),
            tuple(apart),
            tuple(tests),
            found,
            make_split(found, share, excluded),
        )
        corpus._check_size(kept_apart)
        return corpus

    def _check_size(self, kept_apart: Survey) -> None:
        hint = "give more text with DATA"
        if self.found.size < MIN_BYTES:
            raise UsageError(
                f"the data has {self.found.size} bytes of text: too little to learn from", hint=hint
            )
        if self.validation_sources and not kept_apart.size:
            raise UsageError("the validation data has no text in it")

    @property
    def excluded_documents(self) -> int:
        """Documents of the training data left out because they are in the validation or test data."""
        return sum(key in self.split.excluded for key in self.found.keys)

    def pieces(self) -> Iterator[tuple[DocumentPiece, bool]]:
        """All text to train on (False) and to validate on (True)."""
        stream = (piece for source in self.sources for piece in _pieces(source, self.options))
        yield from divide(stream, self.found, self.split)
        for source in self.validation_sources:
            for piece in _pieces(source, self.options):
                yield piece, True

    def training_texts(self) -> Iterator[str]:
        """The text that a tokenizer may be trained on."""
        return (piece.text for piece, held in self.pieces() if not held)

    def tokens(self, tokenizer: Tokenizer, files: bytes, end_of_text: int | None, vocab: int) -> TokenSet:
        """Both sides as token files; made now, or found in the cache.

        ``files`` is what the tokenizer was read from.
        """
        recipe = {
            "sources": [(s.name, s.sha256) for s in self.sources],
            "validation_sources": [(s.name, s.sha256) for s in self.validation_sources],
            "excluded": sorted(key.hex() for key in self.split.excluded),
            "field": self.options.field,
            "separator": self.options.separator,
            "share": self.split.share,
            **_tokenizer_recipe(files, end_of_text, vocab),
        }
        made = cached(recipe) or write_tokens(
            recipe, self.pieces(), tokenizer, end_of_text=end_of_text, vocab_size=vocab
        )
        for side, file in (("training", made.train), ("validation", made.validation)):
            if file.tokens < 2:
                raise UsageError(f"there is no {side} text left", hint="give more text, or another share")
        return made

    def test_tokens(
        self, tokenizer: Tokenizer, files: bytes, end_of_text: int | None, vocab: int
    ) -> Iterator[tuple[Source, TokenFile]]:
        """Each test source as a token file."""
        for source in self.test_sources:
            recipe = {
                "test": (source.path.suffix, source.sha256),
                "field": self.options.field,
                "separator": self.options.separator,
                **_tokenizer_recipe(files, end_of_text, vocab),
            }
            pieces = ((piece, True) for piece in _pieces(source, self.options))
            made = cached(recipe) or write_tokens(
                recipe, pieces, tokenizer, end_of_text=end_of_text, vocab_size=vocab
            )
            yield source, made.validation

    def described(self) -> list[dict[str, Any]]:
        """Every file by name, size and hash."""
        kinds = (
            ("train", self.sources),
            ("validation", self.validation_sources),
            ("test", self.test_sources),
        )
        return [
            {"use": use, "file": s.name, "bytes": s.size, "sha256": s.sha256} for use, ss in kinds for s in ss
        ]

    @property
    def fingerprint(self) -> str:
        """The same for the same files."""
        return hashlib.sha256(repr(self.described()).encode()).hexdigest()


def _pieces(source: Source, options: DataOptions) -> Iterator[DocumentPiece]:
    return read_pieces(source, field=options.field, separator=options.separator)


def _tokenizer_recipe(files: bytes, end_of_text: int | None, vocab_size: int) -> dict[str, Any]:
    digest = hashlib.sha256(files).hexdigest()
    return {"tokenizer": digest, "end_of_text": end_of_text, "vocab_size": vocab_size}


def tokenizer_files(directory: Path) -> bytes:
    """The bytes that decide what the tokenizer of ``directory`` does."""
    names = (TOKENIZER_FILE, *VOCABULARY_FILES)
    return b"\0".join(p.read_bytes() for n in names if (p := directory / n).is_file())
