"""Where converted weights are kept (`core/native/packed.py` makes them): a cache folder for each model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gpt2cli import paths
from gpt2cli.adapter import fingerprint
from gpt2cli.checkpoint import weight_files
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.hub.store import weights_cache

BY_PATH = "by-path"
"""Below ``weights`` in the cache: folders of models and adapters that were named by a directory."""
CONVERTED_DAYS = 30
_SETTLED_S = 3600.0


def converted_stem(model: ResolvedModel) -> Path | None:
    """What the files of a model's converted weights are named after (`LoadOptions.converted`).

    It changes with the weights: with their hashes where a manifest has them, else with the path, size and
    time of change of each file; and with the content of an adapter's files, whose folder is one of a plain
    directory. None for the built-in model, which is small. Raises `ModelFileError`.
    """
    stored = model.stored
    if stored is not None and stored.source == "builtin":
        return None
    files = weight_files(model.directory)
    by_name = {r.path: r.sha256 for r in stored.manifest.files} if stored and stored.manifest else {}
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        known = by_name.get(path.name) or f"{status.st_size} {status.st_mtime_ns}"
        digest.update(f"{path.name}\0{known}\0".encode())
    folder = weights_cache(stored) if stored else _folder_of(model.directory)
    if model.adapter is not None:
        digest.update(f"adapter\0{fingerprint(model.adapter)}\0".encode())
        folder = _folder_of(model.adapter)
    return folder / digest.hexdigest()[:16]


def _folder_of(directory: Path) -> Path:
    place = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    return paths.cache_dir() / "weights" / BY_PATH / place


def unused_converted(*, everything: bool = False) -> Iterator[Path]:
    """Converted weights of plain directories, unused for 30 days, and what was left half-written."""
    root, now = paths.cache_dir() / "weights", time.time()
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                age = now - path.stat().st_mtime
                old = BY_PATH in path.parts and age > CONVERTED_DAYS * 86_400
                if everything or old or (name.startswith(".incoming-") and age > _SETTLED_S):
                    yield path
