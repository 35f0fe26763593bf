"""An existing Hugging Face cache, read-only, by its layout on disk.

::

    <cache>/models--openai-community--gpt2/
      refs/main                 holds the commit
      snapshots/<commit>/       config.json, model.safetensors, … (links into blobs/)

Only snapshots with a ``config.json`` of type gpt2 and a weights file are models here. Nothing of
huggingface_hub but its constants is imported: they know the environment variables of the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2cli.adapter import is_adapter
from gpt2cli.checkpoint import MAX_JSON_BYTES
from gpt2cli.errors import Gpt2cliError
from gpt2cli.families import is_causal_model
from gpt2cli.hub.registry import ModelName, is_name
from gpt2cli.hub.store import StoredModel, folder_name, matches_revision
from gpt2cli.model_files import PICKLE_FILES, WEIGHT_FILES
from gpt2cli.untrusted import read_json

_PREFIX = "models--"


def cache_root() -> Path:
    """The hub's cache directory (``HF_HUB_CACHE``, ``HF_HOME``, or the default)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cached_models() -> Iterator[StoredModel]:
    """Every snapshot of a causal language model in the cache."""
    try:
        folders = sorted(cache_root().glob(_PREFIX + "*"))
    except OSError:
        return
    for folder in folders:
        yield from _snapshots(folder, _is_model)


def find_cached(name: ModelName, revision: str | None) -> StoredModel | None:
    """The cached snapshot of that name: the revision asked for, else the one that ``main`` points to."""
    return _find(name, revision, _is_model)


def find_cached_adapter(name: ModelName, revision: str | None) -> StoredModel | None:
    """The same for an adapter."""
    return _find(name, revision, is_adapter)


def _find(name: ModelName, revision: str | None, wanted: Callable[[Path], bool]) -> StoredModel | None:
    found = [
        model
        for spelling in name.spellings
        for model in _snapshots(cache_root() / (_PREFIX + folder_name(spelling)), wanted)
        if revision is None or matches_revision(revision, model.revision, model.refs)
    ]
    return max(found, key=lambda m: "main" in m.refs, default=None)


def _snapshots(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[StoredModel]:
    try:
        snapshots = sorted((folder / "snapshots").iterdir())
    except OSError:
        return
    name = folder.name.removeprefix(_PREFIX).replace("--", "/")
    if not is_name(name):
        return
    refs = _refs(folder / "refs")
    for directory in snapshots:
        if wanted(directory):
            yield StoredModel(
                name=name,
                revision=directory.name,
                directory=directory,
                source="hf-cache",
                refs=tuple(ref for ref, commit in refs.items() if commit == directory.name),
            )


def _refs(folder: Path) -> dict[str, str]:
    """Branch or tag to commit."""
    refs = {}
    try:
        for path in folder.rglob("*"):
            if path.is_file():
                refs[path.relative_to(folder).as_posix()] = path.read_text("utf-8", "replace").strip()[:64]
    except OSError:
        pass
    return refs


def _is_model(directory: Path) -> bool:
    if not any(os.path.exists(directory / name) for name in (*WEIGHT_FILES, *PICKLE_FILES)):
        return False
    try:
        fields = read_json(directory / "config.json", MAX_JSON_BYTES)
    except Gpt2cliError:
        return False
    return fields.get("model_type", "gpt2") == "gpt2" or is_causal_model(fields)
