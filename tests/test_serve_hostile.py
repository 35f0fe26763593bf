"""Bodies and bytes that nobody should send: each is refused or answered, none breaks anything."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, ask_on, serving
from support import make_model

from gpt2cli.api import bodies

PATHS = {
    "/v1/completions": (bodies.COMPLETION, {"prompt": "ab", "max_tokens": 2}),
    "/v1/chat/completions": (bodies.CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
    "/v1/embeddings": (bodies.EMBEDDINGS, {"input": "ab"}),
    "/tokenize": (bodies.TOKENIZE, {"prompt": "ab"}),
    "/detokenize": (bodies.DETOKENIZE, {"tokens": [1, 2]}),
}
ODD: list[Any] = [
    *(None, True, False, 0, -0.0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, 0.5),
    *("", " ", "a" * 5000, "\x00", "\ud800", "\U0001f680" * 50, "<|endoftext|>" * 9, "../../etc/passwd"),
    *("http://169.254.169.254/", "{{ 7 * 7 }}", "(a+)+$", "\x1b[2J", "NaN", "1"),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        [0] * 3000,
        [[0]] * 300,
        ["x"] * 300,
        [1, "x"],
        [-1],
        [257],
        [2**31],
        [1.5],
    ),
    *({"a": 1}, {"1": 1}, {"-1": 1}, {"999999999": 5}, {"1": "x"}, {"include_usage": True}, {"type": "text"}),
    *({str(n): 1 for n in range(257)}, {"__proto__": 1}, {"role": "user", "content": "x"}),
    *([{"role": "user", "content": "x"}] * 3, [{"role": "system", "content": []}], [{"role": 5}]),
]
FRAGMENTS = [
    b"NaN",
    b"Infinity",
    b"-",
    b"1e999",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"[" * 3000,
    b"{",
    b"\x00",
]


INSERTED = [b"\r\n", b"\x00", b" ", b":", b"Transfer-Encoding: chunked\r\n", b"9" * 30]


def some_body(pick: random.Random, path: str) -> bytes:
    """A body that is right but for some of its fields, or for its bytes."""
    schema, base = PATHS[path]
    body: dict[Any, Any] = dict(base)
    for _ in range(pick.randrange(4)):
        body[pick.choice([*schema["properties"], "unknown"])] = pick.choice(ODD)
    if pick.random() < 0.1:
        body.pop(pick.choice([*body]), None)
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    kind = pick.random()
    if kind < 0.1:
        data = data[: pick.randrange(len(data))]
    elif kind < 0.2:
        at = pick.randrange(len(data))
        data = data[:at] + pick.choice(FRAGMENTS) + data[at + pick.randrange(3) :]
    elif kind < 0.25:
        data = json.dumps(pick.choice(ODD)).encode()
    elif kind < 0.3:
        data = pick.randbytes(pick.randrange(200))
    return data


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model: Path = make_model(tmp_path_factory.mktemp("hostile") / "small", n_positions=32)
    with serving("-m", model, "--threads", "1", "--precision", "fp32") as running:
        yield running


def check_alive(server: Server) -> None:
    """It answers, and has said nothing of a defect."""
    assert server.complete("ab", seed=1, max_tokens=3).texts
    assert server.process.poll() is None
    said = "\n".join(server.log)
    assert "Traceback" not in said and "error: " not in said and "defect" not in said


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_hostile_bodies(server: Server, count: int) -> None:
    pick, found = random.Random(count), Counter[int]()
    connection = server.connect()
    for _ in range(count):
        path = pick.choice([*PATHS])
        data = some_body(pick, path)
        try:
            answer = ask_on(connection, "POST", path, data)
        except (http.client.RemoteDisconnected, ConnectionResetError):
            # The one before has ended the connection.
            connection = server.connect()
            answer = ask_on(connection, "POST", path, data)
        found[answer.status] += 1
        assert answer.status in (200, 400, 404, 413), (path, data[:300], answer.body[:300])
        if answer.status != 200:
            assert answer.error["message"]
        if answer.headers.get("connection") == "close":
            connection = server.connect()
    connection.close()
    assert found[200] > count / 20 and found[400] > count / 4
    check_alive(server)


@pytest.mark.parametrize("seed", range(3))
def test_hostile_bytes(server: Server, seed: int) -> None:
    """A request whose bytes are changed anywhere, its head included."""
    pick = random.Random(seed)
    body = json.dumps({"prompt": "ab", "max_tokens": 1}).encode()
    for _ in range(100):
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        data = bytearray(head.encode() + body)
        for _ in range(pick.randrange(1, 6)):
            at = pick.randrange(len(data))
            if pick.random() < 0.5:
                data[at] = pick.randrange(256)
            else:
                data[at:at] = pick.choice(
                    [b"\r\n", b"\x00", b" ", b":", b"Transfer-Encoding: chunked\r\n", b"9" * 30]
                )
        with contextlib.closing(server.socket()) as bare, contextlib.suppress(ConnectionError):
            bare.sendall(data)
            bare.shutdown(socket.SHUT_WR)
            answer = b""
            while more := bare.recv(65536):
                answer += more
            assert not answer.startswith(b"HTTP/1.1 5"), (data, answer)
    check_alive(server)
