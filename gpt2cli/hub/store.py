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

The manifest (`gpt2cli.hub.manifest`) is written last, in one rename: a directory without one is no model
yet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.hub.manifest import FileRecord, Manifest, now, read_manifest
from gpt2cli.hub.registry import ModelName, is_name

LOCAL_REVISION = "local"
"""Of a model that was imported or trained here."""
_BLOCK = 2**20


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


def add_local(directory: Path, name: ModelName, source: Mapping[str, Any]) -> StoredModel:
    """Copy the files of a model directory into the store under ``name``, all of them or none.

    Raises `UsageError` when the name is taken, `Gpt2cliError` when the store cannot be written.
    """
    check_name_is_free(name)
    root = paths.store_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(dir=root, prefix=".incoming-"))
        try:
            files = tuple(_copy(p, incoming / p.name) for p in sorted(directory.iterdir()) if p.is_file())
            manifest = Manifest(name.given, LOCAL_REVISION, files, ("main",), source, now())
            return place(incoming, manifest)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise Gpt2cliError(f"cannot write to the store {root}: {error.strerror or error}") from None


def check_name_is_free(name: ModelName) -> None:
    """Raise `UsageError` when ``name`` already is a model, or means a published one."""
    if name.given != name.repository:
        raise UsageError(f"the name {name.given} means {name.repository}", hint="choose another name")
    if find_stored(name, None) is not None:
        raise UsageError(f"there already is a model {name.given} in the store", hint="choose another name")


def place(incoming: Path, manifest: Manifest) -> StoredModel:
    """Make the complete directory ``incoming``, which lies in the store, a model. Raises `OSError`."""
    folder = paths.store_dir() / folder_name(manifest.name)
    folder.mkdir(parents=True, exist_ok=True)
    directory, record = folder / manifest.revision, folder / f"{manifest.revision}.json"
    # What is replaced is no model from here on, until the new manifest is there.
    record.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    os.chmod(incoming, 0o755)
    os.replace(incoming, directory)
    manifest.write(record)
    return _stored(manifest, directory)


def _copy(source: Path, target: Path) -> FileRecord:
    """Copy and hash a file, onto the disk."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK):
            writer.write(block)
            digest.update(block)
            size += len(block)
        writer.flush()
        os.fsync(writer.fileno())
    return FileRecord(target.name, size, digest.hexdigest())


def _revisions(folder: Path) -> Iterator[StoredModel]:
    for path in _entries(folder):
        directory = path.with_suffix("")
        if path.suffix != ".json" or not os.path.isdir(directory):
            continue
        manifest = read_manifest(path)
        if manifest and is_name(manifest.name) and folder_name(manifest.name) == folder.name:
            yield _stored(manifest, directory)


def _stored(manifest: Manifest, directory: Path) -> StoredModel:
    return StoredModel(manifest.name, directory.name, directory, "store", manifest.refs, manifest.created)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
