"""Our own store of models on disk.

::

    <store>/                                  paths.store_dir()
      openai-community--gpt2/                 a model: its name, "/" written "--"
        607a30d783dfa663caf39e06633721c8d4cfcd7e/       a revision: a plain model directory
          config.json  model.safetensors  tokenizer.json  …
        607a30d783dfa663caf39e06633721c8d4cfcd7e.json   its manifest
      my-stories/
        local/                                a model imported or trained here
        local.json

The manifest is written last, in one rename: a directory without one is no model yet. A manifest is
a JSON object with ``format`` 1, ``name``, ``revision``, ``refs`` (the branches and tags asked for that
led here, ``main`` for none), ``source`` and ``created`` (ISO 8601, UTC), and ``files``, a list of
``{"path", "size", "sha256"}``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.hub.registry import ModelName, is_name

MANIFEST_FORMAT = 1
MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model revision on disk. ``source`` is ``store`` or ``hf-cache``."""

    name: str
    revision: str
    directory: Path
    source: str
    refs: tuple[str, ...] = ()
    created: str = ""


def folder_name(name: str) -> str:
    """The directory of a model below the store."""
    return name.replace("/", "--")


def stored_models() -> Iterator[StoredModel]:
    """Every model revision in the store; what has no readable manifest is passed over."""
    root = paths.store_dir()
    for folder in _entries(root):
        yield from _revisions(folder)


def find_stored(name: ModelName, revision: str | None) -> StoredModel | None:
    """The stored model of that name: the revision asked for, else the newest."""
    found = [m for spelling in name.spellings for m in _revisions(paths.store_dir() / folder_name(spelling))]
    if revision is not None:
        found = [m for m in found if matches_revision(revision, m.revision, m.refs)]
    return max(found, key=lambda m: ("main" in m.refs, m.created), default=None)


def matches_revision(asked: str, commit: str, refs: tuple[str, ...]) -> bool:
    """Whether ``asked`` means ``commit``: as a branch, a tag, or the first seven or more of its digits."""
    return asked == commit or asked in refs or (len(asked) >= 7 and commit.startswith(asked))


def _revisions(folder: Path) -> Iterator[StoredModel]:
    for path in _entries(folder):
        directory = path.with_suffix("")
        if path.suffix == ".json" and os.path.isdir(directory) and (manifest := read_manifest(path)):
            name = str(manifest.get("name"))
            if not is_name(name) or folder_name(name) != folder.name:
                continue
            yield StoredModel(
                name=name,
                revision=directory.name,
                directory=directory,
                source="store",
                refs=tuple(str(ref) for ref in manifest.get("refs", ())),
                created=str(manifest.get("created", "")),
            )


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest at ``path``; None when it is not one of ours."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            return None
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(manifest, dict) and manifest.get("format") == MANIFEST_FORMAT
    return manifest if known and isinstance(manifest.get("refs", []), list) else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
