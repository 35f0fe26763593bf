"""A server as a process of its own, and what talks to it over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import start

KEY = "a-key-of-some-length"
OTHER_KEY = "and-one-of-another-user"
PATIENCE_S = 60.0


@dataclass
class Answered:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """What is said of an error, in OpenAI's shape."""
        assert self.status >= 400, self.body
        assert set(self.document) == {"error"}
        assert set(self.document["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = self.document["error"]
        return error

    @property
    def events(self) -> list[Any]:
        """The chunks of a stream, which ends as it should."""
        assert self.status == 200, self.body
        assert self.body.isascii()
        lines = [line for line in self.body.decode("ascii").split("\n\n") if line]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    @property
    def texts(self) -> list[str]:
        """The text of each choice, of a whole answer or of a stream."""
        if self.headers["content-type"].startswith("application/json"):
            assert self.status == 200, self.body
            return [choice["text"] for choice in self.document["choices"]]
        found: dict[int, str] = {}
        for event in self.events:
            for choice in event["choices"]:
                found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
        return [found[index] for index in sorted(found)]


@dataclass
class Server:
    """A running server. ``log`` is what it has written so far."""

    process: subprocess.Popen[bytes]
    log: list[str] = field(default_factory=list)
    port: int = 0
    uds: Path | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.sock = self.socket()
        return connection

    def socket(self) -> socket.socket:
        """A bare socket that is connected to it."""
        if self.uds is not None:
            bare = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            bare.settimeout(PATIENCE_S)
            try:
                bare.connect(os.fspath(self.uds))
            except OSError:
                bare.close()
                raise
            return bare
        bare = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return bare

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        """A request on a connection of its own; names of ``headers`` have _ for -."""
        with contextlib.closing(self.connect()) as connection:
            return ask_on(connection, method, path, body, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answered:
        """POST something as JSON."""
        return self.ask("POST", path, body, **headers)

    def complete(self, prompt: Any, **fields: Any) -> Answered:
        """`/v1/completions`."""
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    def metric(self, name: str, **headers: str) -> float:
        """The value of a gauge or a counter."""
        text = self.ask("GET", "/metrics", **headers).body.decode()
        found = re.search(rf"^gpt2cli:{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    def wait_until_idle(self) -> None:
        """Until nothing runs and nothing waits."""
        end = time.monotonic() + PATIENCE_S
        while self.metric("num_requests_running") or self.metric("num_requests_waiting"):
            assert time.monotonic() < end
            time.sleep(0.02)

    @property
    def memory(self) -> int:
        """Bytes of memory of its own that it has now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def ask_on(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> Answered:
    """A request on a connection that may have had others."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None and "content-type" not in given:
        given["content-type"] = "application/json"
    connection.request(method, path, data, given)
    answer = connection.getresponse()
    return Answered(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def read_events(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """The chunks of a stream, as they come."""
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def _impatient(arguments: list[str], patience: dict[str, float]) -> subprocess.Popen[bytes]:
    code = (
        "import json, sys; from gpt2cli.serve import limits;"
        "vars(limits).update(json.loads(sys.argv[1]));"
        "from gpt2cli.cli.app import main; sys.exit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, json.dumps(patience), *arguments]
    return subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextlib.contextmanager
def serving(
    *arguments: str | os.PathLike[str], patience: dict[str, float] | None = None, **keywords: Any
) -> Iterator[Server]:
    """Start a server with ``arguments``, and end it; it has loaded its models when this begins.

    ``patience`` are other values of what stands in `gpt2cli.serve.limits`.
    """
    placed = any(os.fspath(each) in ("--port", "--uds") for each in arguments)
    whole = ["serve", *map(os.fspath, arguments), *([] if placed else ["--port", "0"])]
    process = start(*whole, **keywords) if patience is None else _impatient(whole, patience)
    server, ready = Server(process), threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode().rstrip("\n")
            server.log.append(text)
            if found := re.search(r"listening on (?:http://\S+:(\d+)|(\S+)); ", text):
                server.port = int(found[1] or 0)
                server.uds = Path(found[2]) if found[2] else None
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(PATIENCE_S) and process.poll() is None, server.log
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        reader.join(5)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()
