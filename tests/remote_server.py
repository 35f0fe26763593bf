"""A loopback server that answers as a script says: real sockets, broken in every way that is asked for."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Step = Callable[[socket.socket], None]

PATIENCE_S = 20.0


@dataclass
class Hostile:
    """The server. ``asked`` are the heads of what it was asked, ``bodies`` what was posted, in order."""

    port: int = 0
    owned_by: str = "somebody"
    models: tuple[str, ...] = ("m",)
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    scheme: str = "http"
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    def of(self, name: str) -> str:
        """The value of a header in the last request."""
        lines = self.asked[-1].lower().split("\r\n")
        return next((line.partition(": ")[2] for line in lines if line.startswith(name + ":")), "")


def head(status: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def reply(status: int, document: Any = None, **headers: str) -> Step:
    """A whole answer."""
    body = document if isinstance(document, bytes) else json.dumps(document or {}).encode()

    def step(sock: socket.socket) -> None:
        sock.sendall(head(status, content_type="application/json", content_length=str(len(body)), **headers))
        sock.sendall(body)

    return step


def error(status: int, message: str, **headers: str) -> Step:
    return reply(status, {"error": {"message": message}}, **headers)


def raw(*parts: bytes, pause: float = 0.0) -> Step:
    """Bytes as they are."""

    def step(sock: socket.socket) -> None:
        for part in parts:
            sock.sendall(part)
            time.sleep(pause)

    return step


def event(text: str, **fields: Any) -> bytes:
    """A chunk of a text."""
    choice = {"index": 0, "text": text, "finish_reason": None, **fields}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def text(*texts: str) -> bytes:
    """A stream as it should be."""
    body = b"".join(map(event, texts[:-1])) + event(texts[-1], finish_reason="stop")
    return (
        body
        + b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    )


STREAM = head(200, content_type="text/event-stream")


def stream(*texts: str) -> Step:
    return raw(STREAM, text(*texts))


def hang(sock: socket.socket) -> None:
    """Say nothing until the other side has had enough."""
    sock.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        sock.recv(1)


def then(*steps: Step) -> Step:
    """One after the other, on the same connection."""

    def step(sock: socket.socket) -> None:
        for each in steps:
            each(sock)

    return step


@contextlib.contextmanager
def hostile(
    *steps: Step, models: Step | None = None, tls: ssl.SSLContext | None = None, **known: Any
) -> Iterator[Hostile]:
    """Answer POSTs by ``steps``, the last one again and again, and ``GET /models`` by ``models``."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = Hostile(listener.getsockname()[1], scheme="https" if tls else "http", **known)
    left, lock, sockets = list(steps), threading.Lock(), list[socket.socket]()

    def answer(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sock):
            whole = tls.wrap_socket(sock, server_side=True) if tls else sock
            sockets.append(whole)
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (block := whole.recv(65536)):
                    return
                asked += block
                if not block[:1].isalpha():
                    # TLS where there is none.
                    whole.sendall(head(400))
                    return
            start, _, body = asked.partition(b"\r\n\r\n")
            lines = start.decode("latin-1").split("\r\n")
            length = next((int(x.split(": ")[1]) for x in lines if x.lower().startswith("content-length")), 0)
            while len(body) < length:
                body += whole.recv(65536)
            with lock:
                server.asked.append(start.decode("latin-1"))
                if body:
                    server.bodies.append(json.loads(body))
                step = models if not body else left.pop(0) if len(left) > 1 else left[0]
                server.at_once += bool(body)
                server.most_at_once = max(server.most_at_once, server.at_once)
            listed = [{"id": name, "owned_by": server.owned_by} for name in server.models]
            try:
                (step or reply(200, {"object": "list", "data": listed}))(whole)
            finally:
                with lock:
                    server.at_once -= bool(body)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join(5)
