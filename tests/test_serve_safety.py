"""What `serve` does not let in, tried: rebinding, pages, keys, slow and greedy clients; and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import run
from serving import KEY, OTHER_KEY, Answered, Server, ask_on, read_events, serving
from support import some_slow

MINE = {"authorization": f"Bearer {KEY}"}
LONG = {"max_tokens": 400, "ignore_eos": True, "model": "tiny"}
TOO_SOON_S = 0.4
HASTY = {"HEAD_S": TOO_SOON_S, "BODY_S": TOO_SOON_S, "STALLED_S": TOO_SOON_S, "MAX_CONNECTIONS": 40}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that has no patience."""
    with serving("-m", "tiny", "--threads", "1", patience=HASTY) as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# of two users\n{KEY}\n\n  {OTHER_KEY}  # the other\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def locked(keys: Path) -> Iterator[Server]:
    """One that wants a key, with a single slot. Three requests of each key may wait."""
    arguments = ("--api-key-file", keys, "--slots", "1", "--queue", "6", "--threads", "1")
    with serving("-m", "tiny", *arguments) as running:
        yield running


def raw(server: Server, data: bytes, *, closes: bool = False) -> Answered:
    """Send bytes, and read all that comes back until the server closes."""
    with contextlib.closing(server.socket()) as bare:
        bare.sendall(data)
        if closes:
            bare.shutdown(socket.SHUT_WR)
        return received(bare)


def received(bare: socket.socket) -> Answered:
    """What comes until the server closes; status 0 where nothing does."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := bare.recv(65536):
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    return Answered(int(first.split()[1]) if first else 0, headers, body)


class TestWebPages:
    """What a page in the user's own browser may send, of whatever site."""

    @pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/nothing"])
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example:{port}",
            "evil.example",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.0.0.1.evil.example:{port}",
            "localhost.:{port}",
            "localhost:{port}.evil.example",
            "user@localhost:{port}",
            "0.0.0.0:{port}",
            "",
        ],
    )
    def test_rebinding(self, server: Server, host: str, path: str) -> None:
        """A name that was bound to 127.0.0.1 a moment ago is not ours (CVE-2024-28224)."""
        answer = server.ask("GET", path, host=host.format(port=server.port))
        assert answer.status == 403 and answer.error["code"] == "host_not_allowed"

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"]
    )
    def test_our_names(self, server: Server, host: str) -> None:
        assert server.ask("GET", "/v1/models", host=host.format(port=server.port)).status == 200

    def test_no_host_and_two(self, server: Server) -> None:
        ours = f"Host: 127.0.0.1:{server.port}\r\n".encode()
        for lines in (b"", ours + b"Host: evil.example\r\n", ours + ours):
            answer = raw(server, b"GET /v1/models HTTP/1.1\r\n" + lines + b"\r\n")
            assert answer.status in (400, 403)
        assert raw(server, b"GET /v1/models HTTP/1.0\r\n\r\n").status == 403

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "http://evil.example", "null", "http://localhost", "", "file://"]
    )
    def test_a_foreign_origin(self, server: Server, origin: str) -> None:
        answer = server.post("/v1/completions", {"prompt": "a"}, origin=origin)
        assert answer.status == 403 and answer.error["code"] == "origin_not_allowed"

    def test_our_own_origin(self, server: Server) -> None:
        origin = f"http://127.0.0.1:{server.port}"
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, origin=origin).status == 200

    def test_nobody_may_read_across_origins(self, server: Server) -> None:
        """No answer of any kind has a header of CORS, a preflight included."""
        answers = [
            server.ask("GET", "/health"),
            server.ask("GET", "/nothing"),
            server.complete("a", max_tokens=1),
            server.ask(
                *("OPTIONS", "/v1/completions"),
                origin="https://evil.example",
                access_control_request_method="POST",
            ),
        ]
        for answer in answers:
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answers[-1].status == 403

    def test_what_a_form_can_send_is_no_request(self, server: Server) -> None:
        answer = server.ask("POST", "/v1/completions", b'{"prompt": "a"}', content_type="text/plain")
        assert answer.status == 415


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}x",
            f"Bearer {KEY.upper()}",
            f"Basic {KEY}",
            KEY,
            "Bearer # of two users",
            f"Bearer {KEY} {OTHER_KEY}",
        ],
    )
    def test_without_one(self, locked: Server, header: str | None) -> None:
        given = {} if header is None else {"authorization": header}
        paths = ("/v1/models", "/metrics", "/openapi.json", "/nothing", "/v1/models/tiny")
        for path in paths:
            answer = locked.ask("GET", path, **given)
            assert answer.status == 401 and answer.error["code"] == "invalid_api_key"
        assert locked.post("/v1/completions", {"prompt": "a"}, **given).status == 401
        assert locked.ask("GET", "/health", **given).status == 200

    def test_with_one(self, locked: Server) -> None:
        for key in (KEY, OTHER_KEY):
            for word in ("Bearer", "bearer"):
                assert locked.ask("GET", "/v1/models", authorization=f"{word} {key}").status == 200

    def test_two_are_none(self, locked: Server) -> None:
        head = f"GET /v1/models HTTP/1.1\r\nHost: localhost:{locked.port}\r\n"
        line = f"Authorization: Bearer {KEY}\r\n"
        assert raw(locked, f"{head}{line}{line}\r\n".encode()).status == 401

    def test_a_key_is_not_in_the_log(self, locked: Server) -> None:
        locked.ask("GET", f"/{KEY}", **MINE)
        assert KEY not in "\n".join(locked.log)

    def test_what_one_key_has_read_is_not_there_for_another(self, locked: Server) -> None:
        """How soon the first token comes would tell what others ask."""
        prompt = "Once upon a time there was a small boat that wanted to see the whole wide sea."
        body = {"prompt": prompt, "max_tokens": 3, "seed": 1}

        def cached(key: str) -> int:
            usage = locked.post("/v1/completions", body, authorization=f"Bearer {key}").document["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert [cached(KEY), cached(OTHER_KEY)] == [0, 0]
        assert cached(KEY) > 10 and cached(OTHER_KEY) > 10

    def test_one_key_does_not_keep_another_waiting(self, locked: Server) -> None:
        """With one slot and three that wait, the other key's request is second, not fourth."""
        order: list[str] = []

        def ask(name: str, key: str) -> None:
            body = {"prompt": "Once", **LONG, "max_tokens": 150, "seed": 1}
            assert locked.post("/v1/completions", body, authorization=f"Bearer {key}").status == 200
            order.append(name)

        with ThreadPoolExecutor(4) as pool:
            for name, key in (("first", KEY), ("second", KEY), ("third", KEY), ("other", OTHER_KEY)):
                pool.submit(ask, name, key)
                time.sleep(0.05)
        assert order.index("other") <= 1 and order[-1] == "third"

    def test_a_full_queue(self, locked: Server) -> None:
        """429 with the time after which to come again; what waits is answered."""
        body = {"prompt": "Once", **LONG, "seed": 1}
        with ThreadPoolExecutor(12) as pool:
            answers = [pool.submit(locked.post, "/v1/completions", body, **MINE) for _ in range(12)]
            found = [answer.result() for answer in answers]
        refused = [answer for answer in found if answer.status == 429]
        assert 1 <= len(refused) <= 9 and {answer.status for answer in found} == {200, 429}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1 and answer.error["code"] == "queue_full"
        assert len({text for answer in found if answer.status == 200 for text in answer.texts}) == 1

    @pytest.mark.parametrize(
        ("content", "what"),
        [("", "no key"), ("# nothing\n", "no key"), ("short\n", "16"), ("a b" * 9, "space")],
    )
    def test_files_of_keys(self, tmp_path: Path, content: str, what: str) -> None:
        path = tmp_path / "keys"
        path.write_text(content)
        outcome = run("serve", "-m", "tiny", "--port", "0", "--api-key-file", path)
        assert outcome.code == 2 and what in outcome.err and content.strip() not in ("x", outcome.err)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_no_other_address_without_one(self, host: str) -> None:
        outcome = run("serve", "-m", "tiny", "--port", "0", "--host", host)
        assert outcome.code == 2 and "a key is needed" in outcome.err and "hint: " in outcome.err

    def test_another_address_with_one(self, keys: Path) -> None:
        """The address that was reached is a host name of its own; any other name has to be allowed."""
        arguments = ("--host", "0.0.0.0", "--api-key-file", keys, "--allow-host", "GPT2.example:80")
        with serving("-m", "tiny", *arguments) as server:
            for host, status in (
                (f"127.0.0.1:{server.port}", 200),
                ("gpt2.example:80", 200),
                ("gpt2.example", 403),
                (f"other.example:{server.port}", 403),
            ):
                assert server.ask("GET", "/v1/models", host=host, **MINE).status == status
            assert server.ask("GET", "/v1/models").status == 401


class TestSlowAndGreedy:
    def head(self, server: Server, *lines: str, method: str = "POST") -> bytes:
        fields = (f"Host: localhost:{server.port}", "Content-Type: application/json", *lines)
        return "\r\n".join([f"{method} /v1/completions HTTP/1.1", *fields, "", ""]).encode()

    def drip(self, bare: socket.socket, data: bytes) -> float:
        """Send a byte at a time until the server ends it; how long it took to."""
        begun = time.monotonic()
        bare.settimeout(0.05)
        for n in range(len(data)):
            try:
                bare.sendall(data[n : n + 1])
                if not bare.recv(65536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        return time.monotonic() - begun

    def test_nothing_is_sent(self, server: Server) -> None:
        with contextlib.closing(server.socket()) as bare:
            begun = time.monotonic()
            assert received(bare).status == 0
            assert TOO_SOON_S * 0.8 < time.monotonic() - begun < 5

    def test_a_head_that_does_not_end(self, server: Server) -> None:
        """A byte now and then does not buy more time."""
        with contextlib.closing(server.socket()) as bare:
            assert self.drip(bare, self.head(server)[:-4] + b"\r\nX-A: b" * 200) < 5

    def test_a_second_head_that_does_not_end(self, server: Server) -> None:
        with contextlib.closing(server.socket()) as bare:
            bare.sendall(self.head(server, "Content-Length: 0", method="GET"))
            assert b" 405 " in bare.recv(65536)
            assert self.drip(bare, self.head(server)[:-4] + b"\r\nX-A: b" * 200) < 5

    def test_a_body_that_does_not_come(self, server: Server) -> None:
        answer = raw(server, self.head(server, "Content-Length: 100") + b'{"pro')
        assert answer.status == 408 and answer.error["message"]

    def test_a_body_that_drips(self, server: Server) -> None:
        with contextlib.closing(server.socket()) as bare:
            bare.sendall(self.head(server, "Content-Length: 9000"))
            assert self.drip(bare, b" " * 200) < 5

    def test_a_body_that_nobody_reads(self, server: Server) -> None:
        """The answer needs no body: the connection does not wait for it."""
        data = self.head(server, "Content-Length: 9000", method="GET") + b"x"
        assert raw(server, data).status == 405

    def test_a_huge_head(self, server: Server) -> None:
        for lines in (["X-Long: " + "x" * 20_000], [f"X-{n}: {'x' * 100}" for n in range(500)]):
            answer = raw(server, self.head(server, *lines))
            assert answer.status == 431
        assert raw(server, b"GET /" + b"x" * 20_000, closes=True).status in (0, 400, 431)

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("size", [2**20 + 1, 3 * 2**20])
    def test_a_huge_body(self, server: Server, size: int, chunked: bool) -> None:
        line = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        body = b'"' + b"x" * (size - 2) + b'"'
        body = f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if chunked else body
        answer = raw(server, self.head(server, line) + body)
        assert answer.status == 413 and answer.error["message"]

    def test_what_is_no_http(self, server: Server) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"hello\r\n\r\n",
            b"GET\r\n\r\n",
            b"\x00" * 100 + b"\r\n\r\n",
        ):
            answer = raw(server, data, closes=True)
            assert answer.status in (0, 400)

    @pytest.mark.slow
    def test_a_reader_that_does_not_read(self, tmp_path: Path) -> None:
        """Its answer is given up; what it had is free."""
        fields = {"prompt": "a", "stream": True, "n": 8, "logprobs": 5, **LONG, "max_tokens": 300}
        body = json.dumps(fields).encode()
        with serving("-m", "tiny", "--uds", tmp_path / "socket", patience=HASTY) as server:
            with contextlib.closing(server.socket()) as bare:
                bare.sendall(self.head(server, f"Content-Length: {len(body)}") + body)
                end = time.monotonic() + 60
                while not any("POST /v1/completions" in line for line in server.log):
                    assert time.monotonic() < end
                    time.sleep(0.05)
                server.wait_until_idle()
                whole = received(bare)
            assert whole.status == 200 and b"[DONE]" not in whole.body
            assert server.complete("a", max_tokens=1).status == 200

    def test_too_many_connections(self, server: Server) -> None:
        """The others are closed at once, and those that are there go on."""
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(server.connect()))
            assert ask_on(connection, "GET", "/health").status == 200
            opened = [stack.enter_context(contextlib.closing(server.socket())) for _ in range(80)]
            time.sleep(0.1)
            assert ask_on(connection, "GET", "/health").status == 200
            assert received(opened[-1]).status == 0
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                assert server.ask("GET", "/health").status == 200
                break
        assert server.ask("GET", "/health").status == 200


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_frees_its_slots(self, server: Server, stream: bool) -> None:
        """Long before its texts would have ended."""
        server.wait_until_idle()
        before = server.metric("generation_tokens_total")
        connection = server.connect()
        body = {"prompt": "Once", "n": 8, "stream": stream, **LONG, "max_tokens": 500}
        connection.request(
            "POST", "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        if stream:
            events = read_events(connection.getresponse())
            for _ in range(20):
                next(events)
        while not server.metric("num_requests_running"):
            pass
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        server.wait_until_idle()
        assert server.metric("generation_tokens_total") - before < 8 * 500

    def test_one_that_waits_is_forgotten(self, locked: Server) -> None:
        running = locked.connect()
        body = json.dumps({"prompt": "Once", **LONG}).encode()
        head = {"content-type": "application/json", **MINE}
        running.request("POST", "/v1/completions", body, head)
        waiting = [locked.connect() for _ in range(2)]
        for connection in waiting:
            connection.request("POST", "/v1/completions", body, head)
        while locked.metric("num_requests_waiting", **MINE) < 2:
            pass
        for connection in waiting:
            connection.close()
        end = time.monotonic() + 10
        while locked.metric("num_requests_waiting", **MINE) and time.monotonic() < end:
            time.sleep(0.01)
        assert locked.metric("num_requests_waiting", **MINE) == 0
        assert running.getresponse().status == 200
        running.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no socket files")
class TestSocketFiles:
    def test_only_its_user(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with serving("-m", "tiny", "--uds", path) as server:
            found = path.stat()
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
            assert found.st_uid == os.geteuid()
            assert server.complete("Once", max_tokens=2).status == 200
            second = run("serve", "-m", "tiny", "--uds", path)
            assert second.code == 1 and "there already" in second.err
            assert path.exists()
            assert server.stop() == 0
        assert not path.exists()

    def test_one_that_was_left_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with serving("-m", "tiny", "--uds", path) as server:
            server.process.kill()
            server.process.wait()
        assert path.exists()
        with serving("-m", "tiny", "--uds", path) as server:
            assert server.ask("GET", "/health").status == 200
        assert not path.exists()

    def test_a_folder_of_others(self, tmp_path: Path) -> None:
        folder = tmp_path / "open"
        folder.mkdir()
        folder.chmod(0o777)
        outcome = run("serve", "-m", "tiny", "--uds", folder / "socket")
        assert outcome.code == 2 and "not yours alone" in outcome.err
        outcome = run("serve", "-m", "tiny", "--uds", tmp_path / "absent" / "socket")
        assert outcome.code == 2
        (tmp_path / "file").write_text("mine")
        assert run("serve", "-m", "tiny", "--uds", tmp_path / "file").code == 2
        assert (tmp_path / "file").read_text() == "mine"


class TestTheEnd:
    def requests(self, server: Server, count: int, most: int = 400) -> list[dict[str, Any]]:
        """Long requests, every other one streamed, all of them accepted."""
        pool = ThreadPoolExecutor(count)
        asked = [
            pool.submit(
                *(server.complete, "Once"), **{**LONG, "max_tokens": most}, seed=n, n=2, stream=bool(n % 2)
            )
            for n in range(count)
        ]
        end = time.monotonic() + 20
        while server.metric("num_requests_running") < 2 and time.monotonic() < end:
            time.sleep(0.005)
        pool.shutdown(wait=False)
        return asked  # type: ignore[return-value]

    @pytest.mark.parametrize("number", some_slow([signal.SIGTERM, signal.SIGINT], 1))
    def test_what_runs_is_answered(self, number: int) -> None:
        """New requests are not; then it exits with 0."""
        with serving("-m", "tiny", "--threads", "1", "--slots", "4") as server:
            connection = server.connect()
            assert ask_on(connection, "GET", "/health").status == 200
            asked = self.requests(server, 6, 150)
            time.sleep(0.2)
            server.process.send_signal(number)
            time.sleep(0.1)
            assert ask_on(connection, "GET", "/health").document == {"status": "stopping"}
            refused = ask_on(connection, "POST", "/v1/completions", {"prompt": "a"})
            assert refused.status == 503 and "retry-after" in refused.headers
            connection.close()
            answers = [each.result() for each in asked]  # type: ignore[attr-defined]
            assert [answer.status for answer in answers] == [200] * 6
            assert all(len(answer.texts) == 2 and all(answer.texts) for answer in answers)
            assert server.process.wait(20) == 0
        assert any(line.startswith("stopping: ") for line in server.log)

    def test_a_second_signal_ends_it_now(self) -> None:
        """Whoever is cut off is told: by a status, or by a chunk of the stream."""
        with serving("-m", "tiny", "--threads", "1", "--slots", "2") as server:
            asked = self.requests(server, 6)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            answers: list[Answered] = [each.result() for each in asked]  # type: ignore[attr-defined]
            assert server.process.wait(20) == 0
            assert time.monotonic() - begun < 15
        for answer in answers:
            if answer.status == 200 and b'"error"' in answer.body:
                *_, last, done = [line for line in answer.body.split(b"\n\n") if line]
                assert done == b"data: [DONE]"
                assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "unavailable"
            else:
                assert answer.status in (200, 503) and answer.document
        assert sum(answer.status == 503 or b'"error"' in answer.body for answer in answers) >= 1

    def test_before_the_model_is_loaded(self, tmp_path: Path) -> None:
        outcome = run("serve", "-m", tmp_path)
        assert outcome.code in (3, 5) and outcome.err.startswith("error: ")

    def test_a_port_that_is_taken(self, server: Server) -> None:
        outcome = run("serve", "-m", "tiny", "--port", str(server.port))
        assert outcome.code == 1 and "cannot listen" in outcome.err and "hint: " in outcome.err

    def test_log_lines_as_json(self) -> None:
        with serving("-m", "tiny", "--log-json") as server:
            server.complete("Once", max_tokens=3, seed=1)
            server.stop()
        entries = [json.loads(line) for line in server.log if line.startswith("{") and '"path"' in line]
        assert entries[-1]["path"] == "/v1/completions" and entries[-1]["status"] == 200
        assert (entries[-1]["prompt_tokens"], entries[-1]["completion_tokens"]) == (1, 3)
