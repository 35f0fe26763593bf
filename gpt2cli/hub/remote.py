"""What a repository on the Hub has at a revision, and which of its files a model needs.

Nothing that the server says is taken on trust: a commit is 40 hex digits, a hash 40 or 64, and of the file
names only known ones are ever used. One that would leave its directory condemns the whole answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpt2cli.checkpoint import MAX_JSON_BYTES
from gpt2cli.errors import ModelFileError, Unavailable, UsageError
from gpt2cli.hub.transport import Hub, Pauses, Policy, check_status, read_answer, retrying
from gpt2cli.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    PICKLE_FILES,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHT_FILES,
)
from gpt2cli.options import shown
from gpt2cli.shards import MAX_INDEX_BYTES
from gpt2cli.untrusted import read_json

MAX_ANSWER_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**44
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_SHARDS = 1000

SMALL_FILES: Mapping[str, int] = {
    "generation_config.json": MAX_JSON_BYTES,
    **dict.fromkeys(TOKENIZER_FILES, MAX_JSON_BYTES),
    **dict.fromkeys((TOKENIZER_FILE, *VOCABULARY_FILES), MAX_TOKENIZER_BYTES),
    CARD: 2**20,
}
"""What is wanted beside config.json and the weights, where it is there, and the most bytes of each."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARDS = {
    "safetensors": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}\.safetensors"),
    "bin": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}\.bin"),
}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its size, and its sha256 (large files) or git blob sha1, where known."""

    path: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """The files of a repository at a commit."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]

    def url(self, hub: Hub, path: str) -> str:
        """Where a file is fetched."""
        from huggingface_hub import hf_hub_url

        try:
            return str(hf_hub_url(self.name, path, revision=self.commit, endpoint=hub.endpoint))
        except ValueError:
            raise UsageError(f"{shown(self.name)} cannot be the name of a repository") from None


def look_up(hub: Hub, name: str, revision: str, policy: Policy, pauses: Pauses) -> Repository:
    """Ask the Hub what the model ``name`` has at a branch, tag or commit.

    Raises `ModelNotFound`, `Unavailable`, and `ModelFileError` for an answer that is refused.
    """
    url = f"{hub.endpoint}/api/models/{name}/revision/{quote(revision, safe='')}?blobs=true"
    what = name if revision == "main" else f"{name} at revision {revision}"

    def ask() -> bytes:
        with hub.request("GET", url, policy) as response:
            check_status(hub, response, what)
            return read_answer(hub, response, MAX_ANSWER_BYTES, policy)

    return parse_repository(name, retrying(pauses, ask), hub.shown)


def parse_repository(name: str, answer: bytes, where: str) -> Repository:
    """The repository that the Hub's answer describes. Raises `Unavailable`, `ModelFileError`."""
    try:
        raw = json.loads(answer)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict) or not isinstance(raw.get("siblings"), list):
        raise Unavailable(
            f"{name}: the answer of {where} is not the Hub's",
            hint="a network may answer with a page of its own: log in to it, or check HF_ENDPOINT",
        )
    commit = raw.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ModelFileError(f"{name}: {where} names the commit {shown(commit)}, which is refused")
    files = [_parse_file(name, entry) for entry in raw["siblings"]]
    return Repository(name, commit, {file.path: file for file in files})


def _parse_file(name: str, entry: Any) -> RemoteFile:
    entry = entry if isinstance(entry, dict) else {}
    path, size, blob = (entry.get(key) for key in ("rfilename", "size", "blobId"))
    if not isinstance(path, str) or not is_harmless(path):
        raise ModelFileError(f"{name}: the file name {shown(path)} is refused")
    if size is not None and (type(size) is not int or not 0 <= size <= MAX_FILE_BYTES):
        raise ModelFileError(f"{name}: {shown(path)} has the size {shown(size)}, which is refused")
    large = entry.get("lfs")
    if large is None:
        return RemoteFile(path, size, git_sha1=_hash(blob, _COMMIT, name, path))
    if not isinstance(large, dict):
        raise ModelFileError(f"{name}: the entry of {shown(path)} is malformed")
    digest = large.get("sha256") or str(large.get("oid", "")).removeprefix("sha256:") or None
    return RemoteFile(path, size, sha256=_hash(digest, _SHA256, name, path))


def _hash(value: Any, form: re.Pattern[str], name: str, path: str) -> str | None:
    if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
        raise ModelFileError(f"{name}: {shown(path)} has the hash {shown(value)}, which is refused")
    return value


def is_harmless(path: str) -> bool:
    """Whether a repository's path stays below its directory and can be shown."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts) and len(path) < 1024


def holds_adapter(repository: Repository) -> bool:
    """Whether it is a repository of an adapter: it has one, and no weights of a model."""
    weights = (*WEIGHT_FILES, *PICKLE_FILES)
    return ADAPTER_CONFIG in repository.files and not any(name in repository.files for name in weights)


def config_file(repository: Repository) -> RemoteFile:
    """The file that tells what kind of model or adapter it is. Raises `ModelFileError` without one."""
    path = ADAPTER_CONFIG if holds_adapter(repository) else "config.json"
    return _capped(repository, path, MAX_JSON_BYTES)


def small_files(repository: Repository) -> list[RemoteFile]:
    """The tokenizer's files, the sampling defaults and the card, as far as they are there.

    An adapter has only the card.
    """
    if holds_adapter(repository):
        return [_capped(repository, CARD, SMALL_FILES[CARD])] if CARD in repository.files else []
    return [_capped(repository, path, cap) for path, cap in SMALL_FILES.items() if path in repository.files]


def weight_index(repository: Repository, allow_pickle: bool) -> RemoteFile | None:
    """The index that must be read before the shards are known; None where the weights are one file.

    Raises `ModelFileError` when there are no weights, or only a pickle and that is not allowed.
    """
    if holds_adapter(repository):
        if ADAPTER_WEIGHTS not in repository.files:
            raise ModelFileError(f"{repository.name}: an adapter without {ADAPTER_WEIGHTS}")
        return None
    for names, allowed in ((WEIGHT_FILES, True), (PICKLE_FILES, allow_pickle)):
        single, index = names
        if single not in repository.files and index not in repository.files:
            continue
        if not allowed:
            raise ModelFileError(
                f"{repository.name}: it has its weights only as a pickle ({single}), which can carry code",
                hint="if you trust its owner, --allow-pickle converts plain tensors to safetensors",
            )
        return None if single in repository.files else _capped(repository, index, MAX_INDEX_BYTES)
    raise ModelFileError(f"{repository.name}: it has no model.safetensors")


def weight_files(repository: Repository, index: Path | None) -> list[RemoteFile]:
    """The files of the weights: the single one, or those that the index at ``index`` names."""
    if holds_adapter(repository):
        return [repository.files[ADAPTER_WEIGHTS]]
    if index is None:
        single = next(n for n in (WEIGHT_FILES[0], PICKLE_FILES[0]) if n in repository.files)
        return [repository.files[single]]
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{repository.name}: {index.name} has no weight_map")
    form = _SHARDS["bin" if index.name in PICKLE_FILES else "safetensors"]
    return _shards(repository, index.name, weight_map.values(), form)


def _shards(
    repository: Repository, index: str, named: Iterable[Any], form: re.Pattern[str]
) -> list[RemoteFile]:
    names = set()
    for name in named:
        if not isinstance(name, str) or not form.fullmatch(name) or ".." in name:
            raise ModelFileError(f"{repository.name}: {index} names the file {shown(name)}, which is refused")
        if name not in repository.files:
            raise ModelFileError(f"{repository.name}: {index} names {name}, which is not there")
        names.add(name)
    if len(names) > MAX_SHARDS:
        raise ModelFileError(f"{repository.name}: {index} names {len(names)} files; at most {MAX_SHARDS}")
    return [repository.files[name] for name in sorted(names)]


def _capped(repository: Repository, path: str, cap: int) -> RemoteFile:
    file = repository.files.get(path)
    if file is None:
        raise ModelFileError(f"{repository.name}: it has no {path}, so it is no model that gpt2cli can run")
    if file.size is not None and file.size > cap:
        raise ModelFileError(f"{repository.name}: {path} is larger than {cap} bytes")
    return file
