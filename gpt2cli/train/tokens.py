"""Token ids on disk: made once from the text, then memory-mapped.

A token file is little-endian uint16 (uint32 for vocabularies over 65,536); every document begins with
the end-of-text token, as in GPT-2's training data. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.train.documents import DocumentPiece

FORMAT = 2
BATCH_CHARS = 4 * 2**20
BATCH_TEXTS = 4096

Ids = npt.NDArray[Any]
"""Token ids: uint16 or uint32."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The tokens of one side of a data set."""

    path: Path
    tokens: int
    size: int
    """Bytes of the text they stand for."""
    documents: int
    dtype: str

    def map(self) -> Ids:
        """The ids, [tokens], memory-mapped."""
        if not self.tokens:
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.tokens,))


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Both sides."""

    train: TokenFile
    validation: TokenFile


def cached(recipe: dict[str, Any]) -> TokenSet | None:
    """The token files made before from the same ``recipe`` (JSON); None where there are none."""
    folder = _folder(recipe)
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        files = [TokenFile(folder / f"{side}.bin", **meta[side]) for side in ("train", "validation")]
        for file in files:
            if file.path.stat().st_size != file.tokens * np.dtype(file.dtype).itemsize:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenSet(*files)


def write_tokens(
    recipe: dict[str, Any],
    pieces: Iterator[tuple[DocumentPiece, bool]],
    tokenizer: Tokenizer,
    *,
    end_of_text: int | None,
    vocab_size: int,
) -> TokenSet:
    """Encode ``pieces`` into the cache under ``recipe``, whole or not at all.

    Raises `UsageError` for text that the tokenizer cannot write, `Gpt2cliError` when the disk is full.
    """
    folder = _folder(recipe)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tokens-"))
        sides = _encode(temporary, pieces, tokenizer, end_of_text, vocab_size)
        meta = {name: _without_path(file) for name, file in zip(("train", "validation"), sides, strict=True)}
        (temporary / "meta.json").write_text(json.dumps(meta))
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(temporary, folder)
        except OSError:
            # Another process may have written the same tokens meanwhile.
            if cached(recipe) is None:
                raise
    except OSError as error:
        raise Gpt2cliError(f"cannot write tokens to {folder.parent}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    found = cached(recipe)
    if found is None:
        raise Gpt2cliError(f"the tokens in {folder} cannot be read back")
    return found


def _folder(recipe: dict[str, Any]) -> Path:
    text = json.dumps({"format": FORMAT, **recipe}, sort_keys=True)
    return paths.cache_dir() / "tokens" / hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_path(file: TokenFile) -> dict[str, Any]:
    return {key: value for key, value in asdict(file).items() if key != "path"}


def _encode(
    folder: Path,
    pieces: Iterator[tuple[DocumentPiece, bool]],
    tokenizer: Tokenizer,
    end_of_text: int | None,
    vocab_size: int,
) -> tuple[TokenFile, TokenFile]:
    dtype = "<u2" if vocab_size <= 2**16 else "<u4"
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(contextlib.closing(_Writer(folder / f"{side}.bin", dtype)))
            for side in ("train", "validation")
        ]
        for batch in _batches(pieces):
            texts = [piece.text for piece, _ in batch]
            for (piece, held), ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
                files[held].add(ids, piece, end_of_text, vocab_size)
    train, validation = (file.result() for file in files)
    return train, validation


def _batches(pieces: Iterator[tuple[DocumentPiece, bool]]) -> Iterator[list[tuple[DocumentPiece, bool]]]:
    batch: list[tuple[DocumentPiece, bool]] = []
    chars = 0
    for piece, held in pieces:
        batch.append((piece, held))
        chars += len(piece.text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_TEXTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class _Writer:
    """One token file being written."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path, self._dtype = path, dtype
        self._file = path.open("wb")
        self._tokens = self._size = self._documents = 0

    def add(self, ids: list[int], piece: DocumentPiece, end_of_text: int | None, vocab_size: int) -> None:
        if ids and max(ids) >= vocab_size:
            raise UsageError(f"the tokenizer has more entries than the model's vocabulary of {vocab_size}")
        if piece.starts:
            self._documents += 1
            if end_of_text is not None:
                ids = [end_of_text, *ids]
        self._file.write(np.asarray(ids, self._dtype).tobytes())
        self._tokens += len(ids)
        self._size += len(piece.text.encode())

    def close(self) -> None:
        self._file.close()

    def result(self) -> TokenFile:
        return TokenFile(self._path, self._tokens, self._size, self._documents, self._dtype)
