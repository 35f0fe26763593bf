"""From a name to a model in the store.

::

    <store>/.partial/
      openai-community--gpt2.lock       held by the one process that pulls the model
      openai-community--gpt2/
        607a30d783dfa663caf39e06633721c8d4cfcd7e/     what has come; `gpt2cli.hub.download`

A pull can be killed at any moment; the next one goes on from what is there. Only a directory that is
complete, verified against the Hub's hashes and checked as a model is moved into the store.

Events (``report``) have a key ``event``: ``wait``, ``start``, ``progress``, ``file``, ``retry``,
``rejected``, ``convert``.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.adapter import is_adapter
from gpt2cli.adapter_config import read_adapter_config
from gpt2cli.checkpoint import read_config
from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.files import as_created
from gpt2cli.hub.contents import check_contents
from gpt2cli.hub.download import PART, Changed, disk_error
from gpt2cli.hub.hfcache import find_cached
from gpt2cli.hub.manifest import FileRecord, Manifest, now, read_manifest
from gpt2cli.hub.registry import BUILTIN, ModelName
from gpt2cli.hub.remote import (
    RemoteFile,
    Repository,
    config_file,
    look_up,
    small_files,
    weight_files,
    weight_index,
)
from gpt2cli.hub.store import StoredModel, check_space, find_stored, folder_name, matches_revision, place
from gpt2cli.hub.transport import Hub, Pauses, Policy
from gpt2cli.hub.verify import file_hash
from gpt2cli.hub.workers import fetch_all
from gpt2cli.model_files import ADAPTER_CONFIG, PICKLE_FILES

Report = Callable[[dict[str, Any]], None]

MAIN = "main"
PARTIAL = ".partial"
STALE_S = 7 * 24 * 3600
"""The age at which what has come of another commit is given up."""
LOCK_EVERY_S = 0.2
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """``convert`` writes model.safetensors beside the pickles of a directory; without it they are refused."""

    convert: Callable[[Path], None] | None = None
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model in the store; ``present`` if it was there already, whole."""

    model: StoredModel
    size: int
    present: bool = False


def pull(
    name: ModelName, revision: str | None, hub: Hub, report: Report, options: PullOptions | None = None
) -> Pulled:
    """Bring a model into the store, or find that it is there and undamaged.

    Raises `ModelNotFound`, `Unavailable`, `ModelFileError` for what is refused, `UsageError` for a name
    that cannot be pulled, and `Gpt2cliError` when the store cannot be written.
    """
    options = options or PullOptions()
    check_can_be_pulled(name)
    for _ in range(_ROUNDS):
        pauses = Pauses(options.policy, threading.Event(), lambda why, wait: report(_retry(why, wait)))
        repository = look_up(hub, name.repository, revision or MAIN, options.policy, pauses)
        try:
            return _Pull(name, revision or MAIN, hub, repository, report, options).run()
        except Changed as changed:
            reason = str(changed)
    raise ModelFileError(f"{name.repository}: {hub.shown} contradicts itself about {reason}")


def check_can_be_pulled(name: ModelName) -> None:
    """Raise `UsageError` for a name that is no repository's."""
    if name.given == BUILTIN:
        raise UsageError(f"{BUILTIN} comes with gpt2cli: there is nothing to pull")
    if not is_repository(name):
        raise UsageError(
            f"{name.given} is not a repository", hint="pull gpt2, distilgpt2, … or a model as owner/name"
        )


def is_repository(name: ModelName) -> bool:
    """Whether the Hub can have a model of that name: an alias, or owner/name."""
    return "/" in name.repository


def partial_root() -> Path:
    """Where models lie while they come."""
    return paths.store_dir() / PARTIAL


class _Pull:
    """One model at one commit."""

    def __init__(
        self,
        name: ModelName,
        ref: str,
        hub: Hub,
        repository: Repository,
        report: Report,
        options: PullOptions,
    ) -> None:
        self._name, self._ref, self._hub, self._repository = name, ref, hub, repository
        self._report, self._options = report, options
        self._folder = partial_root() / folder_name(name.repository)
        self._directory = self._folder / repository.commit
        self._started, self._early = False, list[dict[str, Any]]()

    def run(self) -> Pulled:
        """Pull, unless the model is there."""
        if (found := self._stored()) is not None:
            return found
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with model_lock(self._folder, self._report):
                # Another process may have pulled it while this one waited.
                return self._stored() or self._fetch()
        except OSError as error:
            raise disk_error(paths.store_dir(), error) from None

    def _stored(self) -> Pulled | None:
        """The model in the store, when every file of it is what its manifest says."""
        stored = find_stored(self._name, self._repository.commit)
        manifest = stored.manifest if stored else None
        if stored is None or manifest is None:
            return None
        if any(_is_damaged(stored.directory, record) for record in manifest.files):
            return None
        with suppress(Gpt2cliError):
            _move_ref(stored, manifest, self._ref)
        return Pulled(stored, manifest.size, present=True)

    def _fetch(self) -> Pulled:
        self._directory.mkdir(exist_ok=True)
        self._reuse([config_file(self._repository)])
        config = self._fetch_all([config_file(self._repository)])
        with self._refusing():
            if is_adapter(self._directory):
                read_adapter_config(self._directory / ADAPTER_CONFIG)
            else:
                read_config(self._directory)
            index = weight_index(self._repository, self._options.convert is not None)
        first = self._fetch_all([index]) if index else []
        with self._refusing():
            weights = weight_files(self._repository, self._directory / index.path if index else None)
        rest = [*weights, *small_files(self._repository)]
        self._reuse(rest)
        self._check_space(rest, twice=weights[0].path.endswith(".bin"))
        self._announce([*config, *first], rest)
        records = [*config, *first, *self._fetch_all(rest)]
        return self._finish(records)

    def _fetch_all(self, files: Sequence[RemoteFile]) -> list[FileRecord]:
        return fetch_all(
            self._hub, self._repository, files, self._directory, self._options.policy, self._pass_on
        )

    def _pass_on(self, event: dict[str, Any]) -> None:
        """Report, but nothing of files before ``start``: what there is to do is read from the first ones."""
        if event["event"] == "start":
            self._started = True
            self._report(event)
            for early in self._early:
                self._report(early)
        elif self._started or event["event"] == "retry":
            self._report(event)
        elif event["event"] != "progress":
            self._early.append(event)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Drop what has come when the repository itself turns out to be none of ours."""
        try:
            yield
        except ModelFileError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            message = str(error).replace(f"{self._directory}{os.sep}", f"{self._name.repository}: ")
            message = message.replace(str(self._directory), self._name.repository)
            raise ModelFileError(message, hint=error.hint) from None

    def _reuse(self, files: Iterable[RemoteFile]) -> None:
        """Take what lies on this disk already: in a Hugging Face cache, or in a damaged model of the store.

        It is verified like everything else.
        """
        found = (
            find_cached(self._name, self._repository.commit),
            find_stored(self._name, self._repository.commit),
        )
        for source in (model.directory for model in found if model is not None):
            for file in files:
                target = self._directory / file.path
                if not os.path.lexists(target) and _size(source / file.path) == file.size:
                    _link_or_copy(source / file.path, target)

    def _present(self, files: Sequence[RemoteFile]) -> int:
        """The bytes that earlier runs left of ``files``."""
        here = (_size(self._directory / f.path, self._directory / (f.path + PART)) for f in files)
        return sum(min(f.size or 0, have or 0) for f, have in zip(files, here, strict=True))

    def _check_space(self, files: Sequence[RemoteFile], *, twice: bool) -> None:
        """Raise `Gpt2cliError` when the disk has no room for what is still to come."""
        whole = sum(f.size or 0 for f in files)
        missing = whole - self._present(files)
        if twice:
            missing += whole
        if missing:
            check_space(paths.store_dir(), missing)

    def _announce(self, done: Sequence[FileRecord], files: Sequence[RemoteFile]) -> None:
        self._pass_on(
            {
                "event": "start",
                "model": self._name.repository,
                "revision": self._ref,
                "commit": self._repository.commit,
                "endpoint": self._hub.shown,
                "files": len(done) + len(files),
                "total": sum(f.size or 0 for f in files),
                "present": self._present(files),
            }
        )

    def _finish(self, records: list[FileRecord]) -> Pulled:
        """Check the whole, give it its manifest, and move it into the store."""
        source: dict[str, Any] = {
            "kind": "hub",
            "endpoint": self._hub.shown,
            "repository": self._name.repository,
            "commit": self._repository.commit,
        }
        pickles = [
            record for record in records if record.path.endswith(".bin") or record.path in PICKLE_FILES
        ]
        with self._refusing():
            if pickles:
                records = self._convert(records, pickles)
                source["converted_from"] = [{"path": p.path, "sha256": p.sha256} for p in pickles]
            check_contents(self._directory)
        self._sweep({record.path for record in records})
        refs = () if matches_revision(self._ref, self._repository.commit, ()) else (self._ref,)
        files = tuple(sorted(records, key=lambda record: record.path))
        manifest = Manifest(
            self._name.repository, self._repository.commit, files, refs, source, created=now()
        )
        stored = place(self._directory, manifest)
        _move_ref(stored, manifest, self._ref)
        return Pulled(stored, manifest.size)

    def _convert(self, records: list[FileRecord], pickles: list[FileRecord]) -> list[FileRecord]:
        """Replace the pickles by safetensors."""
        assert self._options.convert is not None
        self._report({"event": "convert", "files": [record.path for record in pickles]})
        self._options.convert(self._directory)
        path = self._directory / "model.safetensors"
        as_created(path)
        how = f"converted here from {pickles[0].path}, verified by {pickles[0].verified}"
        record = FileRecord(path.name, path.stat().st_size, file_hash(path), how)
        return [*(r for r in records if r not in pickles), record]

    def _sweep(self, wanted: set[str]) -> None:
        """Remove what is no file of the model, and old leftovers of other commits."""
        for path in self._directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in wanted:
                path.unlink()
        for other in self._folder.iterdir():
            if other != self._directory and time.time() - other.stat().st_mtime > STALE_S:
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def model_lock(folder: Path, report: Report) -> Iterator[None]:
    """Be the only process that works in ``folder``; waits for the other one. Raises `OSError`."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report({"event": "wait", "model": folder.name.replace("--", "/")})
        lock.acquire(poll_interval=LOCK_EVERY_S)
    try:
        # Whoever held the lock may have removed the folder.
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            # Only where nothing is left to go on from.
            folder.rmdir()
        lock.release()


def _move_ref(stored: StoredModel, manifest: Manifest, ref: str) -> None:
    """Let the branch or tag ``ref`` mean this revision, and no other of the model."""
    folder = stored.directory.parent
    for path in folder.glob("*.json"):
        other = read_manifest(path)
        if other is not None and other.revision != manifest.revision and ref in other.refs:
            replace(other, refs=tuple(r for r in other.refs if r != ref)).write(path)
    if ref not in manifest.refs and not matches_revision(ref, manifest.revision, ()):
        replace(manifest, refs=(*manifest.refs, ref)).write(folder / f"{manifest.revision}.json")


def _is_damaged(directory: Path, record: FileRecord) -> bool:
    path = directory / record.path
    return _size(path) != record.size or file_hash(path) != record.sha256


def _link_or_copy(source: Path, target: Path) -> None:
    """Put the file at ``target`` without using the disk twice, where the disk can."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        # Not the final name: a copy that is cut off would only be deleted and fetched.
        with suppress(OSError):
            shutil.copyfile(real, target)


def _size(*candidates: Path) -> int | None:
    """The size of the first of the files that is there."""
    for path in candidates:
        with suppress(OSError):
            if path.is_file():
                return path.stat().st_size
    return None


def _retry(reason: str, wait: float) -> dict[str, Any]:
    return {"event": "retry", "file": None, "reason": reason, "wait_s": round(wait, 2)}
