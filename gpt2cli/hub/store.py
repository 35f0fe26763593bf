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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.files import as_created
from gpt2cli.hub.manifest import FileRecord, Manifest, now, read_manifest
from gpt2cli.hub.registry import ModelName, is_name

LOCAL_REVISION = "local"
"""The revision of a model that was imported or trained here."""
INCOMING_PREFIX = ".incoming-"
"""The beginning of the name of a directory that is being filled."""
_BLOCK = 2**20
_SPARE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model revision on disk.

    ``source`` is ``store`` or ``hf-cache``, for the model of the package ``builtin``, and ``directory`` for
    one that was named by its path. Only what lies in the store has a manifest.
    """

    name: str
    revision: str
    directory: Path
    source: str
    refs: tuple[str, ...] = ()
    created: str = ""
    manifest: Manifest | None = None


def folder_name(name: str) -> str:
    """The directory of a model below the store."""
    return name.replace("/", "--")


def stored_models() -> Iterator[StoredModel]:
    """Every model revision in the store; what has no readable manifest is passed over."""
    root = paths.store_dir()
    for folder in _entries(root):
        yield from _revisions(folder)


def unreadable_manifests() -> list[Path]:
    """Manifests that cannot be read, each beside the directory of a model that is passed over for it."""
    return [
        path
        for folder in _entries(paths.store_dir())
        if not folder.name.startswith(".")
        for path in _entries(folder)
        if path.suffix == ".json" and path.with_suffix("").is_dir() and read_manifest(path) is None
    ]


def find_stored(name: ModelName, revision: str | None) -> StoredModel | None:
    """The stored model of that name: the revision asked for, else the newest."""
    found = stored_revisions(name, revision)
    return max(found, key=lambda m: ("main" in m.refs, m.created), default=None)


def stored_revisions(name: ModelName, revision: str | None = None) -> list[StoredModel]:
    """All stored revisions of that name, or those that ``revision`` means."""
    folders = [paths.store_dir() / folder_name(spelling) for spelling in name.spellings]
    found = [model for folder in folders for model in _revisions(folder)]
    return [m for m in found if revision is None or matches_revision(revision, m.revision, m.refs)]


def check_sizes(model: StoredModel) -> None:
    """Raise `ModelFileError` when a file of ``model`` has not the size that its manifest gives."""
    for record in model.manifest.files if model.manifest else ():
        path = model.directory / record.path
        try:
            size = os.stat(path).st_size
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if size == record.size:
                continue
            problem = f"it has {size} bytes, and had {record.size} when it came in"
        raise ModelFileError(f"{path}: {problem}", hint=f"to repair it: {repair_command(model)}")


def repair_command(model: StoredModel) -> str:
    """The command that puts a damaged model right."""
    if model.source == "hf-cache":
        return f"hf download {model.name} --revision {model.revision} --force-download"
    if model.source == "builtin":
        return "pip install --force-reinstall gpt2cli"
    revision = "" if "main" in model.refs else f"@{model.revision}"
    kind = model.manifest.source.get("kind") if model.manifest else None
    if kind in ("hub", "hf-cache"):
        return f"gpt2cli pull {model.name}{revision}"
    return f"gpt2cli rm {model.name}, then import or train it again"


def remove(model: StoredModel) -> None:
    """Take a revision out of the store, and what was made of it out of the cache.

    The manifest goes first: what is left when this is cut short is no model. Raises `Gpt2cliError`.
    """
    folder = model.directory.parent
    try:
        (folder / f"{model.revision}.json").unlink(missing_ok=True)
        remove_tree(model.directory)
        remove_tree(weights_cache(model))
        if not _entries(folder):
            folder.rmdir()
    except OSError as error:
        raise Gpt2cliError(f"cannot remove {error.filename or folder}: {error.strerror or error}") from None


def remove_tree(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a directory with all in it. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def weights_cache(model: StoredModel) -> Path:
    """Where weights of ``model`` lie that were converted to another precision, if there are any."""
    return paths.cache_dir() / "weights" / folder_name(model.name) / model.revision


def matches_revision(asked: str, commit: str, refs: tuple[str, ...]) -> bool:
    """Whether ``asked`` means ``commit``: as a branch, a tag, or the first seven or more of its digits."""
    return asked == commit or asked in refs or (len(asked) >= 7 and commit.startswith(asked))


def add_local(
    directory: Path, name: ModelName, source: Mapping[str, Any], files: Iterable[Path] | None = None
) -> StoredModel:
    """Copy a model into the store under ``name``, all of it or nothing.

    ``files`` are the files that are taken, wherever they lie; without them, all that ``directory`` has.
    Raises `UsageError` when the name is taken, `Gpt2cliError` when the store cannot be written.
    """
    check_name_is_free(name)
    root = paths.store_dir()
    try:
        chosen = sorted(p for p in (directory.iterdir() if files is None else files) if p.is_file())
        root.mkdir(parents=True, exist_ok=True)
        check_space(root, sum(path.stat().st_size for path in chosen))
        incoming = Path(tempfile.mkdtemp(dir=root, prefix=INCOMING_PREFIX))
        try:
            records = tuple(copy_file(path, incoming / path.name) for path in chosen)
            return place(incoming, Manifest(name.given, LOCAL_REVISION, records, ("main",), source, now()))
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise Gpt2cliError(f"cannot write to the store {root}: {error.strerror or error}") from None


def check_space(directory: Path, needed: int) -> None:
    """Raise `Gpt2cliError` when ``needed`` bytes, and a margin, do not fit the disk of ``directory``."""
    needed += needed // 50 + _SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise Gpt2cliError(
            f"{directory}: {needed / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB are free",
            hint="gpt2cli gc frees what no model needs; GPT2CLI_HOME names another place",
        )


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
    as_created(incoming)
    os.replace(incoming, directory)
    manifest.write(record)
    return _stored(manifest, directory)


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy and hash a file, onto the disk. Raises `OSError`."""
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
    return StoredModel(
        manifest.name, directory.name, directory, "store", manifest.refs, manifest.created, manifest
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
