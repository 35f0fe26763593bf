"""What must not stop `serve`, nor be told by it: readers that do not read, threads that end, full queues."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from cli import run
from serving import KEY, OTHER_KEY, Server, ask_on, serving
from support import make_model

from gpt2cli.cli.serve import _read_keys
from gpt2cli.errors import Gpt2cliError
from gpt2cli.serve.sockets import open_file
from gpt2cli.terminal.streams import Terminal

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


def slow_model(folder: Path) -> Path:
    """A text of it takes seconds, so that what is asked meanwhile is asked in time on a busy machine too."""
    return make_model(folder, n_embd=768, n_layer=6, n_head=12, n_positions=512)


@pytest.mark.slow
def test_a_key_has_its_share_of_the_queue_and_no_more(tmp_path: Path) -> None:
    """Or one could keep all others out. Two of each key may wait here."""
    model = slow_model(tmp_path / "slow")
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n{OTHER_KEY}\n")
    path.chmod(0o600)
    arguments = ("--api-key-file", path, "--slots", "1", "--queue", "4", "--threads", "1")
    with serving("-m", model, *arguments) as server:
        body = {"prompt": "Once", "max_tokens": 250, "ignore_eos": True}
        with ThreadPoolExecutor(9) as pool:
            greedy = [
                pool.submit(server.post, "/v1/completions", body, authorization=f"Bearer {KEY}")
                for _ in range(8)
            ]
            # One that is turned away says that its key has all that it may.
            next(each for each in as_completed(greedy) if each.result().status == 429)
            answer = server.post(
                "/v1/completions", {**body, "max_tokens": 1}, authorization=f"Bearer {OTHER_KEY}"
            )
            assert answer.status == 200
            statuses = [each.result().status for each in greedy]
    assert {*statuses} == {200, 429} and statuses.count(200) <= 4


@pytest.mark.slow
def test_a_busy_model_keeps_no_other_one_waiting(tmp_path: Path) -> None:
    """Nor does what waits for it."""
    slow, model = slow_model(tmp_path / "slow"), make_model(tmp_path / "other")
    with serving("-m", slow, "-m", model, "--slots", "1", "--threads", "1") as server:
        fields = {"model": "slow", "max_tokens": 300, "ignore_eos": True}
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
