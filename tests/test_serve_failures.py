"""What must not stop `serve`, nor be told by it: readers that do not read, threads that end, full queues."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import run
from serving import KEY, OTHER_KEY, Server, ask_on, serving
from support import make_model

import gpt2cli
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.cli.serve import _read_keys
from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.options import GenerateOptions, LoadOptions
from gpt2cli.serve.answers import dumps, dumps_long
from gpt2cli.serve.errors import ApiError
from gpt2cli.serve.guard import Doors, Guard, Keys
from gpt2cli.serve.log import Log
from gpt2cli.serve.metrics import Metrics
from gpt2cli.serve.models import Served
from gpt2cli.serve.sockets import open_file
from gpt2cli.serve.streaming import Stream
from gpt2cli.serve.tickets import Event, Texts, Ticket
from gpt2cli.serve.worker import Worker
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.tokenizer import Tokenizer

BUILTIN = Path(gpt2cli.__file__).parent / "builtin"
HASTY = {"STALLED_S": 0.4, "IDLE_S": 1.0}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the files of a process are counted in /proc")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("hasty") / "socket"
    with serving("-m", "tiny", "--threads", "1", "--uds", path, patience=HASTY) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One of a model whose tokens are bytes."""
    model = make_model(tmp_path_factory.mktemp("plain") / "bytes", n_positions=1024)
    with serving("-m", model, "--threads", "1", "--precision", "fp32") as running:
        yield running


def request_of(path: str, body: object) -> bytes:
    """A request as it is sent."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def sockets_of(server: Server) -> int:
    """How many sockets a process has open."""
    count = 0
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(entry).startswith("socket:")
    return count


def comes_to(server: Server, sockets: int, patience_s: float = 10) -> bool:
    """Whether it has no more than these sockets before the patience ends."""
    end = time.monotonic() + patience_s
    while sockets_of(server) > sockets:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@linux
class TestReadersThatDoNotRead:
    @pytest.mark.parametrize("kilobytes", [360, 400, 900])
    def test_a_whole_answer(self, hasty: Server, kilobytes: int) -> None:
        """However little of it is left at the end: the connection goes, though nobody reads."""
        before = sockets_of(hasty)
        with contextlib.closing(hasty.socket()) as bare:
            bare.sendall(request_of("/tokenize", {"prompt": "a b " * (kilobytes * 256 // 3)}))
            assert bare.recv(1)
            assert comes_to(hasty, before)

    def test_a_slow_reader_has_it_all(self, hasty: Server) -> None:
        """Who takes some of it before each patience ends is not cut off."""
        with contextlib.closing(hasty.socket()) as bare:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            bare.sendall(request_of("/tokenize", {"prompt": "a b " * 100_000}))
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                more = bare.recv(2**17)
                assert more
                data += more
                time.sleep(0.1)
        assert len(json.loads(data.partition(b"\r\n\r\n")[2])["tokens"]) >= 200_000


class TestFilesOfKeys:
    def test_a_comment_begins_a_line_or_follows_a_space(self, tmp_path: Path) -> None:
        """Or the half of a key would be one."""
        path = tmp_path / "keys"
        path.write_text("#one\na-key-with-a-#-within-it\n a-second-key-here# # two\na-third-key-of-all\t#x\n")
        path.chmod(0o600)
        found = _read_keys(Terminal(None, None, None, {}), path)
        assert found == ["a-key-with-a-#-within-it", "a-second-key-here#", "a-third-key-of-all"]

    def test_one_that_is_too_large_is_refused(self, tmp_path: Path) -> None:
        """A key that is cut is another one."""
        path = tmp_path / "keys"
        path.write_text(f"{KEY}\n" * 100_000)
        outcome = run("serve", "-m", "tiny", "--port", "0", "--api-key-file", path)
        assert outcome.code == 2 and "larger" in outcome.err


class TestWhatErrorsTell:
    def test_a_model_without_a_tokenizer_is_not_served(self, tmp_path: Path) -> None:
        model = make_model(tmp_path / "model", tokenizer=None)
        outcome = run("serve", "-m", model, "--port", "0")
        assert outcome.code == 5 and "no tokenizer" in outcome.err

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
    def test_no_path_of_the_machine(self, tmp_path: Path, path: str) -> None:
        """A tokenizer with more tokens than the model: the log says where it is, the answer does not."""
        model = make_model(tmp_path / "model", vocab_size=20)
        content = [{"role": "user", "content": "zz"}]
        body = {"prompt": "zz"} if path == "/v1/completions" else {"input": "zz"}
        with serving("-m", model) as server:
            answer = server.post(path, {"messages": content} if "chat" in path else body)
            assert answer.status == 500 and str(tmp_path) not in answer.error["message"]
            server.stop()
        assert any(str(tmp_path) in line for line in server.log)


def asked(served: Served | None) -> Ticket:
    """A request for one long text."""
    texts = Texts(0, 0, [1, 2], GenerateOptions(seed=1), 40, frozenset())
    return Ticket(served, [texts], None, None)  # type: ignore[arg-type]


def test_a_key_has_its_share_of_the_queue_and_no_more(tmp_path: Path) -> None:
    """Or one could keep all others out. Two of each key may wait here."""
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n{OTHER_KEY}\n")
    path.chmod(0o600)
    arguments = ("--api-key-file", path, "--slots", "1", "--queue", "4", "--threads", "1")
    with serving("-m", "tiny", *arguments) as server:
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}
        with ThreadPoolExecutor(9) as pool:
            greedy = [
                pool.submit(server.post, "/v1/completions", body, authorization=f"Bearer {KEY}")
                for _ in range(8)
            ]
            while server.metric("num_requests_waiting", authorization=f"Bearer {OTHER_KEY}") < 2:
                assert not all(each.done() for each in greedy)
            answer = server.post(
                "/v1/completions", {**body, "max_tokens": 1}, authorization=f"Bearer {OTHER_KEY}"
            )
            assert answer.status == 200
            statuses = [each.result().status for each in greedy]
    assert {*statuses} == {200, 429} and statuses.count(200) <= 4


def test_models_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All their keys and values together take half of what is free."""
    load = LoadOptions(threads=1, precision="fp32")
    models = [
        Served(name, open_checkpoint(make_model(tmp_path / name, n_positions=1024)), load) for name in "abcd"
    ]
    free = 40_000_000
    monkeypatch.setattr("gpt2cli.serve.worker.available_memory", lambda: free)

    async def main() -> None:
        worker = Worker(models, asyncio.get_running_loop(), 32, Log(None))
        worker.start()
        async with asyncio.timeout(20):
            await worker.ready.wait()
        worker.stop()
        await asyncio.to_thread(worker.join, 10)

    asyncio.run(main())
    taken = sum(model.budget * model.ready.backend.bytes_per_token for model in models)
    assert 0.4 * free < taken <= 0.5 * free


class TestTheEndOfTheEngine:
    def test_all_are_told(self) -> None:
        """Those that were not looked at, and those that come when nobody looks any more."""

        async def main() -> list[Event | None]:
            worker = Worker([], asyncio.get_running_loop(), 1, Log(None))
            worker._load = missing  # type: ignore[method-assign]
            tickets = [asked(None) for _ in range(3)]
            for ticket in tickets[:2]:
                worker.submit(ticket)
            worker.start()
            await asyncio.to_thread(worker.join, 10)
            worker.submit(tickets[2])
            async with asyncio.timeout(10):
                return [await ticket.events.get() for ticket in tickets]

        def missing() -> None:
            raise ModelFileError("damaged")

        events = asyncio.run(main())
        assert [isinstance(event, ApiError) and event.status for event in events] == [500] * 3

    def test_before_anything_is_freed(self, tmp_path: Path) -> None:
        """What freeing does wrong then keeps nobody waiting."""
        checkpoint = open_checkpoint(make_model(tmp_path))
        served = Served("model", checkpoint, LoadOptions(threads=1))

        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        async def main() -> list[Event | None]:
            worker = Worker([served], asyncio.get_running_loop(), 1, Log(None))
            worker._measure = worker._drop = broken  # type: ignore[method-assign]
            tickets = [asked(served) for _ in range(3)]
            for ticket in tickets:
                worker.submit(ticket)
            worker.start()
            last: list[Event | None] = []
            async with asyncio.timeout(20):
                for ticket in tickets:
                    while not isinstance(event := await ticket.events.get(), ApiError):
                        pass
                    last.append(event)
            await asyncio.to_thread(worker.join, 10)
            return last

        assert len(asyncio.run(main())) == 3


def test_a_busy_model_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    """Nor does what waits for it."""
    model = make_model(tmp_path / "other")
    with serving("-m", "tiny", "-m", model, "--slots", "1", "--threads", "1") as server:
        fields = {"model": "tiny", "max_tokens": 500, "ignore_eos": True}
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(server.complete, "Once", **fields) for _ in range(2)]
            while not server.metric("num_requests_waiting"):
                assert not busy[0].done()
            answer = server.complete("a", model="other", max_tokens=1)
            assert not busy[0].done() and not busy[1].done()
            assert answer.status == 200 and [each.result().status for each in busy] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt", "before"), [("", ""), ([256], "<|endoftext|>")])
def test_the_offsets_are_of_the_text_that_is_returned(
    plain: Server, prompt: Any, before: str, stream: bool
) -> None:
    """The bos of an empty prompt is in the list of tokens, but not in the text; one that is asked for is."""
    fields = {"echo": True, "logprobs": 0, "max_tokens": 5, "seed": 1, "ignore_eos": True}
    fields |= {"logit_bias": {"65": 100, "66": 100}, "stream": stream}
    answer = plain.complete(prompt, model="bytes", **fields)
    choices = [event["choices"][0] for event in answer.events] if stream else answer.document["choices"]
    lists = [choice["logprobs"] for choice in choices]
    tokens, offsets = (
        [each for found in lists for each in found[name]] for name in ("tokens", "text_offset")
    )
    (text,) = answer.texts
    assert text.startswith(before) and len(text) == len(before) + 5 and len(tokens) == 6
    for token, offset in zip(tokens[1:], offsets[1:], strict=True):
        assert text[offset:].startswith(token)
    assert offsets[:2] == [0, len(before)]


def test_a_long_text_is_tokenised_beside_other_threads() -> None:
    """Or no other answer would go on meanwhile. Its ids are those of a short one's way."""
    tokenizer = Tokenizer.from_directory(BUILTIN)
    assert tokenizer is not None
    text = "Once upon a time <|endoftext|> there was a boat. " * 20_000
    with ThreadPoolExecutor(1) as pool:
        last = begun = time.perf_counter()
        longest, encoded = 0.0, pool.submit(tokenizer.encode, text)
        while not encoded.done():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    assert longest < (last - begun) / 2
    for special in (False, True):
        ids = tokenizer.encode(text[:20_000], special_tokens=special)
        assert ids == tokenizer._backend.encode(text[:20_000]).ids


def test_a_long_answer_is_written_beside_others(plain: Server) -> None:
    """Whoever asks meanwhile is answered long before it is done."""
    text = "a bc" * 200_000
    with contextlib.closing(plain.connect()) as connection, ThreadPoolExecutor(1) as pool:
        ask_on(connection, "GET", "/health")
        begun, longest = time.perf_counter(), 0.0
        body = {"prompt": text, "return_token_strs": True}
        answer = pool.submit(plain.post, "/tokenize", body)
        while not answer.done():
            sent = time.perf_counter()
            assert ask_on(connection, "GET", "/health").status == 200
            longest = max(longest, time.perf_counter() - sent)
            time.sleep(0.002)
        took = time.perf_counter() - begun
    document = answer.result().document
    assert "".join(document["token_strs"]) == text and document["count"] == len(document["tokens"]) == 800_000
    assert longest < took / 4


def test_what_is_written_in_pieces() -> None:
    """It is what json writes at once."""
    document: dict[str, Any] = {"a": '"data":[]', "data": [], "b": {"data": []}}
    for length in range(8):
        document["data"] = [{"x": number, "data": []} for number in range(length)]
        assert {dumps_long(document, "data", each) for each in (1, 2, 3, 9)} == {dumps(document)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_echo(plain: Server, stream: bool) -> None:
    """Written elsewhere than a short one; each text has its prompt's scores."""
    prompts = ["ab" * 300, "x" * 200]
    fields = {"echo": True, "logprobs": 1, "max_tokens": 2, "n": 2, "seed": 1, "ignore_eos": True}
    answer = plain.complete(prompts, **fields, stream=stream)
    assert [text[:200] for text in answer.texts] == ["ab" * 100] * 2 + ["x" * 200] * 2
    counts = [0] * 4
    for document in answer.events if stream else [answer.document]:
        for choice in document["choices"]:
            counts[choice["index"]] += len(choice["logprobs"]["tokens"])
    assert counts == [602, 602, 202, 202]


class Wire:
    """An end that notes what is sent, and what is cut off. Nothing can be sent after ``most`` messages."""

    def __init__(self, most: int = 1000) -> None:
        self.sent: list[Any] = []
        self.said: list[str] = []
        self.most, self.cut = most, False

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self.most:
            raise RuntimeError("broken")
        self.sent.append(message)

    def abort(self) -> None:
        """As of a `Protocol`."""
        self.cut = True

    def answer(self, app: Any) -> None:
        """Let ``app`` answer a request behind the `Guard`."""
        doors = Doors(frozenset(), Keys([]), any_host=True)
        log = Log(self.said.append)
        scope = {"method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
        scope["state"] = {"protocol": self}
        guard = Guard(app, doors, log, Metrics(), ["/"])
        asyncio.run(guard(scope, None, self.send))  # type: ignore[arg-type]
        log.close()
        assert guard.active == 0


class TestFailuresOfFailures:
    @pytest.mark.parametrize("most", [0, 1])
    def test_a_refusal_that_cannot_be_sent(self, most: int) -> None:
        """It stays within the guard, and the connection goes."""

        async def app(*_: object) -> None:
            raise ApiError(400, "no")

        wire = Wire(most)
        wire.answer(app)
        assert wire.cut and any("RuntimeError" in line for line in wire.said)

    @pytest.mark.parametrize("after", [0, 2])
    def test_a_stream_that_fails(self, after: int) -> None:
        """Its reader is told, and the log."""

        async def chunks() -> Any:
            for number in range(after):
                yield {"number": number}
            raise ZeroDivisionError

        wire = Wire()
        wire.answer(Stream(chunks(), None))  # type: ignore[arg-type]
        begin, *bodies = wire.sent
        assert begin["status"] == (200 if after else 500) and not bodies[-1].get("more_body")
        assert b'"error"' in bodies[-1]["body"] and (b"[DONE]" in bodies[-1]["body"]) == bool(after)
        assert any("ZeroDivisionError" in line for line in wire.said)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no socket files")
class TestSocketFiles:
    def test_one_that_is_too_busy_to_answer_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(os.fspath(path))
            listener.listen(0)
            with contextlib.suppress(OSError):
                for _ in range(10):
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                    waiting.setblocking(False)
                    waiting.connect(os.fspath(path))
            with pytest.raises(Gpt2cliError, match="there already"):
                open_file(path)
            assert path.is_socket()

    def test_the_one_of_another_server_stays(self, tmp_path: Path) -> None:
        """At the end, where somebody has put it into the place of ours."""
        path = tmp_path / "socket"
        with serving("-m", "tiny", "--uds", path) as server, socket.socket(socket.AF_UNIX) as other:
            kept = path.rename(tmp_path / "ours")
            other.bind(os.fspath(path))
            assert server.stop() == 0
            assert kept.exists() and path.is_socket()
