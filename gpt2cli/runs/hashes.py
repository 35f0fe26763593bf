"""Which model it was: the SHA-256 of its files, read anew only when they have changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from gpt2cli.jobs.manifest import model_hash

SMALL_BYTES = 2**24
"""What takes some hundredths of a second to hash."""
_BLOCK_BYTES = 2**20
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


class Stopped(Exception):
    """The files were not read to their end."""


class KnownHashes(Protocol):
    """Hashes of files that were computed before, as the log keeps them."""

    def known_hash(self, path: Path) -> str | None: ...
    def keep_hash(self, path: Path, sha256: str) -> None: ...


def hash_of_model(
    directory: Path,
    known: Mapping[str, str],
    kept: KnownHashes | None = None,
    *,
    adapter: Path | None = None,
    stop: Callable[[], bool],
) -> str:
    """The hash of a model with its adapter, as `gpt2cli.jobs.manifest.model_hash` defines it.

    ``known`` are hashes that a manifest gives, by file name. In a Hugging Face cache large files are named by
    theirs. Others are computed, and ``kept`` remembers those of large files. Raises `Stopped` once ``stop``
    says so, `ModelFileError`, `OSError`.
    """

    def hash_file(path: Path) -> str:
        blob = os.path.basename(os.path.realpath(path)) if path.is_symlink() else ""
        if _BLOB_NAME.fullmatch(blob):
            return blob
        large = kept is not None and path.stat().st_size > SMALL_BYTES
        found = kept.known_hash(path) if kept is not None and large else None
        if found is None:
            found = _read(path, stop)
            if kept is not None and large:
                kept.keep_hash(path, found)
        return found

    return model_hash(directory, known, hash_file, adapter=adapter)


def _read(path: Path, stop: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        large = os.fstat(file.fileno()).st_size > SMALL_BYTES
        while block := file.read(_BLOCK_BYTES):
            if large and stop():
                raise Stopped
            digest.update(block)
    return digest.hexdigest()
