"""A Hub on this machine: its API, ``/{repo}/resolve/{revision}/{file}``, and a second host for large files.

It speaks the protocol well enough for huggingface_hub's own ``snapshot_download`` (a test says so), and
then follows a script of faults, file by file. Everything it was asked is kept in ``requests``.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 20_000
"""Files of at least as many bytes are in LFS here: sha256, and fetched from the second host."""
BLOCK = 16 * 1024


@dataclass(frozen=True)
class Request:
    """What was asked, of the ``hub`` or the ``files`` host; ``sent`` is filled in when the body went out."""

    host: str
    method: str
    path: str
    headers: dict[str, str]
    sent: list[int] = field(default_factory=list)

    @property
    def bytes_sent(self) -> int:
        return sum(self.sent)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one GET of a file (or of ``api``), from byte ``at`` of the body."""

    kind: str
    at: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    call: Callable[[], object] | None = None


def close(at: int) -> Fault:
    """The connection is closed after ``at`` bytes of the body."""
    return Fault("close", at)


def reset(at: int) -> Fault:
    """The same with a TCP reset."""
    return Fault("reset", at)


def status(code: int, **headers: str) -> Fault:
    """Another status; ``retry_after="1"`` becomes a header."""
    return Fault("status", status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})


def body(content: bytes, kind: str = "text/html", code: int = 200) -> Fault:
    """Another body, whole, with its own length."""
    return Fault("body", status=code, body=content, headers={"content-type": kind})


def stall(at: int, seconds: float) -> Fault:
    """Nothing comes for a while after ``at`` bytes; then the connection is closed."""
    return Fault("stall", at, seconds=seconds)


def drip(at: int, seconds: float) -> Fault:
    """After ``at`` bytes they come one by one, ``seconds`` apart."""
    return Fault("drip", at, seconds=seconds)


def ignore_range() -> Fault:
    """The whole file with 200, whatever was asked for."""
    return Fault("ignore_range")


def flip(at: int) -> Fault:
    """The byte at ``at`` is another one."""
    return Fault("flip", at)


def then(at: int, call: Callable[[], object]) -> Fault:
    """Something happens after ``at`` bytes; the transfer goes on."""
    return Fault("call", at, call=call)


def slow(seconds: float) -> Fault:
    """A pause of ``seconds`` between blocks."""
    return Fault("slow", seconds=seconds)


class Repository:
    """The files of a repository at one commit."""

    def __init__(self, name: str, files: dict[str, bytes], salt: str = "") -> None:
        self.name, self.files = name, files
        digest = hashlib.sha1(f"{name}{salt}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha1(content).digest())
        self.commit = digest.hexdigest()
        self.refs = {"main", self.commit}

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        whole: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob_sha1(content)}
        if is_large(content):
            pointer = 130
            whole["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": pointer}
            whole["blobId"] = hashlib.sha1(content[:100]).hexdigest()
        return whole

    def etag(self, path: str) -> str:
        content = self.files[path]
        return sha256(content) if is_large(content) else blob_sha1(content)


def is_large(content: bytes) -> bool:
    return len(content) >= LARGE


@lru_cache(maxsize=64)
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=64)
def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@lru_cache(maxsize=64)
def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def model_files(directory: Path, **more: bytes) -> dict[str, bytes]:
    """The files of a model directory, as a repository has them."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()} | more


class HubServer:
    """Two loopback servers, until closed. ``url`` is what HF_ENDPOINT is set to."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[Repository]] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.head_headers: dict[str, dict[str, str | None]] = {}
        self.answer: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.lock = threading.Lock()
        self._hub, self._files = (self._serve(host) for host in ("hub", "files"))
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        # By another name: huggingface_hub 1 takes two ports of one host for the same Hub.
        self.files_url = f"http://localhost:{self._files.server_port}"

    def _serve(self, host: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "host": host})
        server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def close(self) -> None:
        for server in (self._hub, self._files):
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: dict[str, bytes], salt: str = "") -> Repository:
        """Give a repository a new commit, which ``main`` then is."""
        repository = Repository(name, files, salt)
        for older in self.repositories.setdefault(name, []):
            older.refs.discard("main")
        self.repositories[name].append(repository)
        return repository

    def script(self, path: str, *faults: Fault) -> None:
        """What happens to the next GETs of ``path``, one after another; then all is well."""
        self.faults[path].extend(faults)

    def find(self, name: str, revision: str) -> Repository | None:
        return next((r for r in self.repositories.get(name, ()) if revision in r.refs), None)

    def gets(self, path: str) -> list[Request]:
        """The GETs of the bytes of a file."""
        bodies = [r for r in self.requests if r.method == "GET" and r.path.endswith("/" + path)]
        return [r for r in bodies if r.host == "files"] or bodies

    def bytes_sent(self, path: str) -> int:
        return sum(r.bytes_sent for r in self.gets(path))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = False
        request = Request(self.host, self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        self.request_record = request
        self.hub.requests.append(request)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and self.host == "hub":
            self._api(parts[2:], parse_qs(url.query))
        elif self.host == "hub" and "resolve" in parts:
            self._resolve(parts)
        elif self.host == "files":
            name, commit, path = "/".join(parts[:2]), parts[2], "/".join(parts[3:])
            repository = self.hub.find(name, commit)
            assert repository is not None
            self._file(path, repository.files[path], f'"{md5(repository.files[path])}"', {})
        else:
            self._send(404, {}, b"")

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if self._fault_of("api"):
            return
        name = "/".join(parts[:2])
        if name in self.hub.renamed:
            target = self.path.replace(name, self.hub.renamed[name])
            self._send(307, {"location": target}, b"")
            return
        kind = parts[2] if len(parts) > 2 else "revision"
        revision = parts[3] if len(parts) > 3 else "main"
        if name not in self.hub.repositories:
            self._send(401, {"x-error-code": "RepoNotFound"}, b'{"error": "Repository not found"}')
            return
        repository = self.hub.find(name, revision)
        if repository is None:
            self._send(404, {"x-error-code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}')
            return
        entries = [repository.entry(path) for path in repository.files]
        answer: Any = {
            "id": name, "modelId": name, "sha": repository.commit, "private": False, "gated": False,
            "siblings": entries if query.get("blobs") else [{"rfilename": e["rfilename"]} for e in entries],
        }  # fmt: skip
        if kind == "tree":
            answer = [
                {"type": "file", "path": e["rfilename"], "size": e["size"], "oid": e["blobId"]}
                | ({"lfs": {"oid": e["lfs"]["sha256"], **e["lfs"]}} if "lfs" in e else {})
                for e in entries
            ]
        answer = self.hub.answer(answer)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self._send(200, {"content-type": "application/json"}, content)

    def _resolve(self, parts: list[str]) -> None:
        at = parts.index("resolve", 2)
        name, revision, path = "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :])
        if name in self.hub.renamed:
            self._send(307, {"location": self.path.replace(name, self.hub.renamed[name])}, b"")
            return
        repository = self.hub.find(name, revision)
        if repository is None or path not in repository.files:
            code = "EntryNotFound" if repository else "RepoNotFound"
            self._send(404 if repository else 401, {"x-error-code": code}, b"")
            return
        content = repository.files[path]
        etag = f'"{repository.etag(path)}"'
        headers: dict[str, str] = {"x-repo-commit": repository.commit}
        if is_large(content):
            headers |= {"x-linked-etag": etag, "x-linked-size": str(len(content))}
            headers["location"] = f"{self.hub.files_url}/{name}/{repository.commit}/{path}"
        if self.command == "HEAD":
            for key, value in self.hub.head_headers.get(path, {}).items():
                headers.pop(key, None)
                if value is not None:
                    headers[key] = value
        if is_large(content):
            self._send(302, headers, b"")
            return
        if self.command == "HEAD" and "etag" in self.hub.head_headers.get(path, {}):
            etag = headers.pop("etag", "")
        self._file(path, content, etag, headers)

    def _file(self, path: str, content: bytes, etag: str, headers: dict[str, str]) -> None:
        headers = {"etag": etag, "accept-ranges": "bytes", **headers}
        if self.command == "HEAD":
            self._send(200, headers, b"", length=len(content))
            return
        fault = self._next_fault(path)
        if fault is not None and fault.kind in ("status", "body"):
            self._send(fault.status, fault.headers, fault.body)
            return
        begin, code = 0, 200
        asked, condition = self.headers.get("range"), self.headers.get("if-range")
        if asked and condition in (None, etag) and not (fault and fault.kind == "ignore_range"):
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            if begin >= len(content):
                self._send(416, {"content-range": f"bytes */{len(content)}"}, b"")
                return
            code = 206
            headers["content-range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if fault is not None and fault.kind == "flip" and begin <= fault.at < len(content):
            content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
        self._begin(code, headers, len(content) - begin)
        self._stream(content[begin:], fault)

    def _stream(self, content: bytes, fault: Fault | None) -> None:
        cut = fault.at if fault and fault.kind in ("close", "reset", "stall", "drip", "call") else None
        self._write(content[:cut])
        if cut is None:
            return
        rest = content[cut:]
        assert fault is not None
        if fault.kind == "call":
            assert fault.call is not None
            fault.call()
            self._write(rest)
        elif fault.kind == "drip":
            for n in range(len(rest)):
                self._write(rest[n : n + 1])
                time.sleep(fault.seconds)
        else:
            time.sleep(fault.seconds)
            if fault.kind == "reset":
                # A reset takes with it what the client has not read yet.
                time.sleep(0.1)
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            if fault.kind == "reset":
                self.connection.close()

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        for at in range(0, len(view), BLOCK if self._pause else 2**20):
            block = view[at : at + (BLOCK if self._pause else 2**20)]
            self.wfile.write(block)
            self.request_record.sent.append(len(block))
            if self._pause:
                time.sleep(self._pause)

    _pause = 0.0

    def _next_fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            faults = self.hub.faults[path]
            fault = faults.popleft() if faults else None
        self._pause = fault.seconds if fault is not None and fault.kind == "slow" else 0.0
        return fault

    def _fault_of(self, path: str) -> bool:
        fault = self._next_fault(path)
        if fault is None:
            return False
        if fault.kind in ("close", "reset"):
            self.close_connection = True
        else:
            self._send(fault.status, fault.headers, fault.body)
        return True

    def _send(self, code: int, headers: dict[str, str], content: bytes, length: int | None = None) -> None:
        self._begin(code, headers, len(content) if length is None else length)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, code: int, headers: dict[str, str], length: int) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if "content-length" not in {key.lower() for key in headers}:
            self.send_header("content-length", str(length))
        self.end_headers()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub for a while."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()
