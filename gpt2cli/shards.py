"""Weights in several files, and the index that says which tensor is in which; nothing of them is trusted."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from gpt2cli.errors import ModelFileError
from gpt2cli.options import shown, shown_names
from gpt2cli.safetensors_header import TensorInfo, read_header
from gpt2cli.untrusted import read_json

MAX_INDEX_BYTES = 8 * 2**20
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def read_shards(index: Path) -> dict[str, TensorInfo]:
    """The tensors of all shards; each must be in the file that the index names. Raises `ModelFileError`."""
    weight_map = _weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    for path in _paths(index, weight_map):
        table = read_header(path)
        strays = [key for key in table if weight_map.get(key, path.name) != path.name]
        if strays or tensors.keys() & table.keys():
            raise ModelFileError(f"{index}: does not agree with {path.name}")
        tensors.update(table)
    if missing := weight_map.keys() - tensors.keys():
        raise ModelFileError(f"{index}: {shown_names(missing)} missing from the shards")
    return tensors


def shard_paths(index: Path) -> list[Path]:
    """The paths of the shards. Raises `ModelFileError` for an index that is malformed, or names others."""
    return _paths(index, _weight_map(index))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    named = isinstance(weight_map, dict) and weight_map
    if not named or not all(isinstance(v, str) for v in named.values()):
        raise ModelFileError(f"{index}: has no weight_map")
    return dict(named)


def _paths(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    """The paths of the shards, each a plain file name beside the index.

    A link is accepted only where the index is one too: that is how a Hugging Face cache stores files.
    """
    paths = []
    for name in sorted(set(weight_map.values())):
        path = index.parent / name
        if not _SHARD_NAME.fullmatch(name) or ".." in name or (path.is_symlink() and not index.is_symlink()):
            raise ModelFileError(f"{index}: refuses the file name {shown(name)}")
        if not os.path.exists(path):
            raise ModelFileError(f"{index}: {name} is missing")
        paths.append(path)
    return paths
