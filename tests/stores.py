"""Models put where the command line finds them: in the store, and in a Hugging Face cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.hub.hfcache import cache_root
from gpt2cli.hub.manifest import FileRecord, Manifest
from gpt2cli.hub.store import StoredModel, copy_file, folder_name, place

COMMIT, OTHER = "607a30d783dfa663caf39e06633721c8d4cfcd7e", "e7da7f221d5bf496a48136c0cd264e630fe9fcc8"
GPT2 = "openai-community/gpt2"


def store_model(
    directory: Path,
    name: str,
    revision: str = "local",
    *,
    refs: tuple[str, ...] = ("main",),
    kind: str = "import",
    created: str = "2026-11-21T00:00:00+00:00",
    **extra: str,
) -> StoredModel:
    """Place a copy of a model directory in the store; ``extra`` are further files and their text."""
    incoming = paths.store_dir() / ".incoming-test"
    incoming.mkdir(parents=True)
    files = [copy_file(path, incoming / path.name) for path in sorted(directory.iterdir())]
    for file, text in extra.items():
        path = incoming / file.replace("_", ".")
        path.write_text(text, "utf-8")
        files.append(FileRecord(path.name, path.stat().st_size, sha256(path)))
    return place(incoming, Manifest(name, revision, tuple(files), refs, {"kind": kind}, created))


def cache_model(directory: Path, name: str, commit: str = COMMIT, *, ref: str = "main") -> Path:
    """Put a copy of a model directory into the Hugging Face cache, as the hub's client does; the snapshot."""
    root = cache_root() / f"models--{folder_name(name)}"
    snapshot, blobs = root / "snapshots" / commit, root / "blobs"
    for folder in (snapshot, blobs, root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    for path in directory.iterdir():
        blob = sha256(path) if path.suffix == ".safetensors" else git_sha1(path.read_bytes())
        shutil.copyfile(path, blobs / blob)
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", blob))
    return snapshot


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}".encode() + b"\0" + data).hexdigest()


def flip_a_byte(path: Path, where: int = -9) -> None:
    """Another byte in the middle of a file, its size kept; a link is followed, as a bad disk would."""
    target = path.resolve()
    data = bytearray(target.read_bytes())
    data[where] ^= 0x40
    target.write_bytes(bytes(data))


def tree(root: Path) -> dict[str, Any]:
    """Every path below a directory and what it holds."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name] = os.readlink(path) if path.is_symlink() else sha256(path) if path.is_file() else None
    return found
