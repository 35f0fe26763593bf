"""The bytes of a file: fetched, taken up again where they broke off, hashed as they come, and placed.

::

    <directory>/
      model.safetensors             complete, its hash is the Hub's
      merges.txt.part               on its way; its length is what has come
      merges.txt.part.etag          the entity tag of the server that sends it, for If-Range

A part survives a kill at any moment. What it holds is hashed again before it grows, so that nothing is
believed of it, and a file gets its name only when the whole of it has the hash that the Hub gives.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import Gpt2cliError, ModelFileError, Unavailable
from gpt2cli.hub.manifest import FileRecord
from gpt2cli.hub.remote import RemoteFile, Repository
from gpt2cli.hub.transport import (
    RESUME_HINT,
    Hub,
    Pauses,
    Policy,
    Stopped,
    Transient,
    check_status,
    retrying,
)
from gpt2cli.options import shown

PART, ETAG = ".part", ".part.etag"
MEBIBYTE = 2**20
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")


class Rejected(Exception):
    """What came is not the file."""


class NotBegun(Rejected):
    """What is offered is not the file; nothing of it was taken."""


class Changed(Exception):
    """The server contradicts its own listing: the repository is not what it was when we asked."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must turn out to be. ``digest`` is a sha256, or the sha1 of the file as a git blob."""

    size: int
    digest: str

    @property
    def kind(self) -> str:
        """The name of the hash, for manifests."""
        return "sha256" if len(self.digest) == 64 else "git blob sha1"


class Hasher:
    """The sha256 of what is pushed, and the git blob sha1 where that is what is expected."""

    def __init__(self, expected: Expected) -> None:
        self._expected, self._sha256 = expected, hashlib.sha256()
        header = b"blob %d\0" % expected.size
        self._sha1 = hashlib.sha1(header, usedforsecurity=False) if len(expected.digest) == 40 else None

    def push(self, block: bytes) -> None:
        self._sha256.update(block)
        if self._sha1 is not None:
            self._sha1.update(block)

    @property
    def sha256(self) -> str:
        """The sha256 so far."""
        return self._sha256.hexdigest()

    @property
    def matches(self) -> bool:
        """Whether this is the expected file."""
        return (self._sha1 or self._sha256).hexdigest() == self._expected.digest


class Part:
    """A file on its way: what has come lies on disk and is in the hash. Raises `OSError`."""

    def __init__(self, target: Path, expected: Expected, stop: threading.Event) -> None:
        self._target, self._stop = target, stop
        self._path, self._etag_path = (
            target.with_name(target.name + PART),
            target.with_name(target.name + ETAG),
        )
        self.expected, self.hasher, self.size = expected, Hasher(expected), 0
        # A link, of whoever made it, must not be written through.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self._path, flags, 0o666)
        self._take_up()

    def _take_up(self) -> None:
        if os.fstat(self._descriptor).st_size > self.expected.size:
            self.restart()
        while block := os.read(self._descriptor, MEBIBYTE):
            self._check_stop()
            self.hasher.push(block)
            self.size += len(block)

    @property
    def etag(self) -> str | None:
        """The tag under which the server sent what is here, fit for ``If-Range``."""
        with suppress(OSError, UnicodeDecodeError):
            text = self._etag_path.read_text("ascii")
            return text if _ETAG.fullmatch(text) else None
        return None

    def begin(self, etag: str | None) -> None:
        """Start over with what the server now sends under ``etag``."""
        self.restart()
        if etag is not None and _ETAG.fullmatch(etag):
            self._etag_path.write_text(etag, "ascii")

    def restart(self) -> None:
        """Drop what has come."""
        self._check_stop()
        self._etag_path.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.hasher, self.size = Hasher(self.expected), 0

    def append(self, block: bytes) -> None:
        """Add to it. Raises `Rejected` when it grows beyond the file, `Stopped`."""
        self._check_stop()
        if self.size + len(block) > self.expected.size:
            raise Rejected("more bytes than the file has")
        view = memoryview(block)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.hasher.push(block)
        self.size += len(block)

    def place(self) -> None:
        """Onto the disk, and under its name."""
        self._check_stop()
        os.fsync(self._descriptor)
        self.close()
        os.replace(self._path, self._target)
        self._etag_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what has come for another time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches files of ``repository`` into ``directory``, which nobody else writes to.

    ``moved(file, bytes)`` hears of every change of what a file has, ``say(event)`` of the rest; both are
    called from whichever thread fetches. ``stop`` ends all of them.
    """

    hub: Hub
    repository: Repository
    directory: Path
    policy: Policy
    stop: threading.Event
    moved: Callable[[str, int], None]
    say: Callable[[dict[str, Any]], None]

    def fetch(self, file: RemoteFile) -> FileRecord:
        """The file, complete and verified under its name.

        Raises `Unavailable` when the server does not give it, `ModelFileError` when what it gives is
        twice not the file, `Changed`, `Stopped`, and `Gpt2cliError` when the disk does not take it.
        """
        pauses = Pauses(self.policy, self.stop, lambda why, wait: self._retry(file, why, wait))
        try:
            expected = retrying(pauses, lambda: self._head(file))
            target = self.directory / file.path
            record = self._there_already(target, expected)
            if record is None:
                record = self._transfer(file, target, expected, pauses)
        except OSError as error:
            raise disk_error(self.directory, error) from None
        self.say({"event": "file", "file": file.path, "size": record.size, "sha256": record.sha256})
        return record

    def _head(self, file: RemoteFile) -> Expected:
        """What the Hub's own headers and its listing agree on."""
        url = self.repository.url(self.hub, file.path)
        with self.hub.request("HEAD", url, self.policy, to_other_hosts=False) as response:
            if response.status_code >= 400:
                check_status(self.hub, response, f"{self.repository.name}: {file.path}")
            headers = response.headers
            moved = response.has_redirect_location
        commit = headers.get("x-repo-commit")
        if commit is not None and commit != self.repository.commit:
            raise self._refused(file, "commit", commit)
        linked = headers.get("x-linked-etag") or ("" if moved else headers.get("etag", ""))
        etag = linked.removeprefix("W/").strip('"')
        if etag and not _HASH.fullmatch(etag):
            raise self._refused(file, "ETag", linked)
        size = headers.get("x-linked-size") or (None if moved else headers.get("content-length"))
        if size is not None and not re.fullmatch(r"[0-9]{1,15}", size):
            raise self._refused(file, "size", size)
        return self._agreed(file, etag or None, None if size is None else int(size))

    def _agreed(self, file: RemoteFile, etag: str | None, size: int | None) -> Expected:
        listed = file.sha256 or file.git_sha1
        if listed and etag and listed != etag:
            raise Changed(file.path)
        if None not in (size, file.size) and size != file.size:
            raise Changed(file.path)
        digest, size = listed or etag, size if file.size is None else file.size
        if digest is None or size is None:
            raise ModelFileError(
                f"{self.repository.name}: the server gives no hash and size of {file.path}",
                hint="HF_ENDPOINT must name a server that does as the Hub does",
            )
        return Expected(size, digest)

    def _refused(self, file: RemoteFile, what: str, value: str) -> ModelFileError:
        name = self.repository.name
        return ModelFileError(
            f"{name}: the server gives {file.path} the {what} {shown(value)}, which is refused"
        )

    def _there_already(self, target: Path, expected: Expected) -> FileRecord | None:
        """The record of a file that came earlier; one that is not what it should be is deleted."""
        if not os.path.lexists(target):
            return None
        if target.is_file() and not target.is_symlink() and target.stat().st_size == expected.size:
            hasher = Hasher(expected)
            with target.open("rb") as reader:
                while block := reader.read(MEBIBYTE):
                    if self.stop.is_set():
                        raise Stopped
                    hasher.push(block)
            if hasher.matches:
                self.moved(target.name, expected.size)
                return self._record(target, expected, hasher)
        target.unlink()
        return None

    def _transfer(self, file: RemoteFile, target: Path, expected: Expected, pauses: Pauses) -> FileRecord:
        reason = ""
        for attempt in (1, 2):
            part = Part(target, expected, self.stop)
            try:
                self.moved(file.path, part.size)
                self._complete(file, part, pauses)
                if part.hasher.matches:
                    part.place()
                    return self._record(target, expected, part.hasher)
                reason = f"its {expected.kind} is not the one that the Hub gives"
                discard(target)
            except NotBegun as rejected:
                reason = str(rejected)
            except Rejected as rejected:
                discard(target)
                reason = str(rejected)
            finally:
                part.close()
            self.say({"event": "rejected", "file": file.path, "reason": reason, "attempt": attempt})
            if retrying(pauses, lambda: self._head(file)) != expected:
                raise Changed(file.path)
        raise ModelFileError(
            f"{self.repository.name}: what came for {file.path} is not the file, twice: {reason}",
            hint="it was not kept; a proxy or a network's login page may stand between",
        )

    def _complete(self, file: RemoteFile, part: Part, pauses: Pauses) -> None:
        """Receive until all bytes are there, over as many connections as it takes."""
        while part.size < part.expected.size:
            before = part.size
            try:
                self._receive(file, part)
            except Transient as failure:
                if part.size - before >= MEBIBYTE:
                    pauses.reset()
                pauses.after(failure)

    def _receive(self, file: RemoteFile, part: Part) -> None:
        """What one connection brings. Raises `Transient` when it ends early, `Rejected`."""
        headers = {}
        if part.size:
            headers["range"] = f"bytes={part.size}-"
            if part.etag is not None:
                headers["if-range"] = part.etag
        url = self.repository.url(self.hub, file.path)
        with self.hub.request("GET", url, self.policy, headers) as response:
            anew = self._begins_anew(file, part, response)
            _check_offer(response, part.expected.size - (0 if anew else part.size))
            if anew:
                part.begin(response.headers.get("etag"))
            watch = Watch(self.policy)
            for block in response.iter_raw():
                part.append(block)
                self.moved(file.path, part.size)
                watch.count(len(block), file.path)
        if part.size < part.expected.size:
            raise Transient(Unavailable(f"{file.path}: the connection ends early", hint=RESUME_HINT))

    def _begins_anew(self, file: RemoteFile, part: Part, response: Any) -> bool:
        """Whether the body is the whole file, not the rest of it. Raises `Transient`, `NotBegun`."""
        status, etag = response.status_code, response.headers.get("etag")
        if status == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            fits = found and int(found[1]) == part.size and found[2] in ("*", str(part.expected.size))
            if not fits or (part.etag is not None and etag is not None and etag != part.etag):
                self._lose(file, part, "the server sends another part than was asked for")
            return False
        if status == 416:
            self._lose(file, part, "the server does not have the part that was asked for")
        check_status(self.hub, response, f"{self.repository.name}: {file.path}")
        if status != 200:
            raise NotBegun(f"the server answers {status}")
        return True

    def _lose(self, file: RemoteFile, part: Part, why: str) -> None:
        part.restart()
        self.moved(file.path, 0)
        raise Transient(Unavailable(f"{file.path}: {why}"))

    def _record(self, target: Path, expected: Expected, hasher: Hasher) -> FileRecord:
        return FileRecord(target.name, expected.size, hasher.sha256, f"{expected.kind} from the Hub")

    def _retry(self, file: RemoteFile, reason: str, wait: float) -> None:
        self.say({"event": "retry", "file": file.path, "reason": reason, "wait_s": round(wait, 2)})


def _check_offer(response: Any, size: int) -> None:
    """Tell a page of somebody else's from the file before anything is received. Raises `NotBegun`."""
    length = response.headers.get("content-length", "")
    coding = response.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise NotBegun(f"the server sends it encoded as {shown(coding)}")
    if re.fullmatch(r"[0-9]{1,18}", length) and int(length) != size:
        raise NotBegun(f"the server sends {int(length)} bytes instead of {size}")


class Watch:
    """Notices a connection that brings too little."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._since, self._bytes = policy, time.monotonic(), 0

    def count(self, size: int, what: str) -> None:
        """Count bytes. Raises `Transient` after ``stall_s`` under the least rate."""
        self._bytes += size
        passed = time.monotonic() - self._since
        if passed < self._policy.stall_s:
            return
        if self._bytes < self._policy.least_rate * passed:
            raise Transient(Unavailable(f"{what}: the connection stalls", hint=RESUME_HINT))
        self._since, self._bytes = time.monotonic(), 0


def discard(target: Path) -> None:
    """Delete what lies there of a file on its way. Raises `OSError`."""
    for suffix in (PART, ETAG):
        target.with_name(target.name + suffix).unlink(missing_ok=True)


def disk_error(where: Path, error: OSError) -> Gpt2cliError:
    """What the disk said, for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Gpt2cliError(f"the disk of {where} is full", hint=f"make room; {RESUME_HINT}")
    return Gpt2cliError(
        f"cannot write to the store: {error.filename or where}: {error.strerror or error}",
        hint="GPT2CLI_HOME names another place for models",
    )
