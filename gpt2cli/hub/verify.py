"""Whether the files of a model are what they were when it came in.

A model of the store is held against its manifest. In a Hugging Face cache a file is a link to a blob that
is named by its hash: sha256, or git's sha1 for small files. Elsewhere there is nothing to hold a file
against, and it stays unverified.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli.errors import Gpt2cliError
from gpt2cli.hub.contents import check_contents
from gpt2cli.hub.manifest import FileRecord, Manifest, read_manifest
from gpt2cli.hub.store import StoredModel, repair_command, weights_cache

Status = Literal["verified", "damaged", "unverified"]
FileStatus = Status | Literal["deleted"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_NAMES = {"sha256": _SHA256, "git sha1": re.compile(r"[0-9a-f]{40}")}
_BLOCK = 2**20
_CONVERTED = "converted weights "
"""Before the name of a file that is none of the model's own."""


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What was found out about one file; ``detail`` says what is wrong, or what it was held against.

    ``deleted`` are damaged files that are made again when they are needed: the model itself is whole.
    """

    path: str
    status: FileStatus
    detail: str


@dataclass(frozen=True, slots=True)
class FilesReport:
    """What was found out about a model's files. ``problem`` is what its config or tensor table lacks."""

    model: StoredModel
    files: tuple[FileCheck, ...]
    problem: str | None

    @property
    def status(self) -> Status:
        """``verified`` only when every file of the model is, and the tensor table fits the config."""
        found = {check.status for check in self.files}
        if self.problem is not None or "damaged" in found:
            return "damaged"
        return "unverified" if not found - {"deleted"} or "unverified" in found else "verified"

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        wrong = [
            f"{check.path}: {check.detail}" for check in self.files if check.status in ("damaged", "deleted")
        ]
        return wrong + ([self.problem] if self.problem is not None else [])

    @property
    def repair(self) -> str | None:
        """What puts the model right; None where nothing is damaged."""
        if self.status != "damaged":
            return None
        damaged = [check.path for check in self.files if check.status == "damaged"]
        if self.problem is None and all(path.startswith(_CONVERTED) for path in damaged):
            return f"delete {weights_cache(self.model)}"
        return repair_command(self.model)


def verify_files(model: StoredModel) -> FilesReport:
    """Read every file of ``model``, and check its config and tensor table."""
    if model.source == "hf-cache":
        files = tuple(_against_blobs(model.directory))
    else:
        own = read_manifest(model.directory / "manifest.json") if model.source == "builtin" else None
        manifest = model.manifest or own
        files = tuple(_against_manifest(model.directory, manifest) if manifest else _alone(model.directory))
    try:
        check_contents(model.directory, allow_pickle=True)
        problem = None
    except Gpt2cliError as error:
        problem = str(error)
    return FilesReport(model, (*files, *_converted(model)), problem)


def _against_manifest(directory: Path, manifest: Manifest) -> Iterator[FileCheck]:
    for record in manifest.files:
        yield _against_record(directory / record.path, record)
    known = {record.path for record in manifest.files} | {"manifest.json"}
    for path in _files(directory):
        name = path.relative_to(directory).as_posix()
        if name not in known and not path.name.startswith("."):
            yield FileCheck(name, "damaged", "it was not there when the model came in")


def _against_record(path: Path, record: FileRecord) -> FileCheck:
    expected = record.sha256.lower()
    try:
        size = path.stat().st_size
        if not path.is_file() or size != record.size:
            what = "" if not path.is_file() else f"it has {size} bytes, and had {record.size}"
            return FileCheck(record.path, "damaged", what or "it is no file")
        if not _SHA256.fullmatch(expected):
            return FileCheck(record.path, "unverified", "the manifest has no sha256 of it")
        found = file_hash(path)
    except OSError as error:
        return FileCheck(record.path, "damaged", error.strerror or str(error))
    if found != expected:
        return FileCheck(record.path, "damaged", f"its sha256 is {found}, and was {expected}")
    return FileCheck(record.path, "verified", f"sha256 of the manifest ({record.verified})")


def _against_blobs(snapshot: Path) -> Iterator[FileCheck]:
    for path in _files(snapshot):
        name = path.relative_to(snapshot).as_posix()
        expected = os.path.basename(os.path.realpath(path)) if path.is_symlink() else ""
        kind = next((kind for kind, pattern in _BLOB_NAMES.items() if pattern.fullmatch(expected)), "")
        if not kind:
            yield FileCheck(name, "unverified", "its name in the cache is no hash")
            continue
        try:
            found = file_hash(path, git=kind == "git sha1")
        except OSError as error:
            yield FileCheck(name, "damaged", error.strerror or str(error))
            continue
        if found == expected:
            yield FileCheck(name, "verified", f"{kind} of the blob's name")
        else:
            yield FileCheck(name, "damaged", f"its {kind} is {found}, and its blob is named {expected}")


def _alone(directory: Path) -> Iterator[FileCheck]:
    for path in _files(directory):
        name = path.relative_to(directory).as_posix()
        yield FileCheck(name, "unverified", "there is no hash to hold it against")


def _converted(model: StoredModel) -> Iterator[FileCheck]:
    """Hold a model's converted weights against the hashes of when they were made.

    A damaged one is deleted, so that it is made again when it is needed; it is no fault of the model.
    """
    for path in sorted(weights_cache(model).glob("*.safetensors")):
        sidecar = path.with_name(f"{path.name}.sha256")
        name = _CONVERTED + path.name
        try:
            expected = sidecar.read_text("ascii").strip()
            same = file_hash(path) == expected
        except (OSError, ValueError) as error:
            expected, same = str(error), False
        if same:
            yield FileCheck(name, "verified", "sha256 of when they were made")
            continue
        try:
            path.unlink()
        except OSError as error:
            why = error.strerror or str(error)
            yield FileCheck(name, "damaged", f"not what was written, and cannot be deleted: {why}")
        else:
            yield FileCheck(name, "deleted", "not what was written; deleted, and made again when needed")


def file_hash(path: Path, *, git: bool = False) -> str:
    """The sha256 of a file, or the sha1 that git gives it as a blob. Raises `OSError`."""
    if not path.is_file():
        # Opening a pipe would wait for its writer.
        raise OSError(f"{path}: no regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = b"blob %d\0" % size
        digest = hashlib.sha1(header, usedforsecurity=False) if git else hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    """Everything below a directory that is no directory, in order; a link is not followed into one."""
    found = []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        found += [Path(folder, name) for name in sorted(names)]
    return found
