"""What must not stop `serve`, tried in one process: an engine that ends, failures of failures, long texts."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import make_model

import gpt2cli
from gpt2cli.api.answers import dumps, dumps_long
from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served
from gpt2cli.api.parts import Event, Texts
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.errors import ModelFileError
from gpt2cli.options import GenerateOptions, LoadOptions
from gpt2cli.serve.guard import Doors, Guard, Keys
from gpt2cli.serve.log import Log
from gpt2cli.serve.metrics import Metrics
from gpt2cli.serve.streaming import Stream
from gpt2cli.serve.tickets import Ticket
from gpt2cli.serve.worker import Worker
from gpt2cli.text.tokenizer import Tokenizer

BUILTIN = Path(gpt2cli.__file__).parent / "builtin"


def asked(served: Served | None) -> Ticket:
    """A request for one long text."""
    texts = Texts(0, 0, [1, 2], GenerateOptions(seed=1), 40, frozenset())
    return Ticket(served, [texts], None, None)  # type: ignore[arg-type]


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


def test_what_is_written_in_pieces() -> None:
    """It is what json writes at once."""
    document: dict[str, Any] = {"a": '"data":[]', "data": [], "b": {"data": []}}
    for length in range(8):
        document["data"] = [{"x": number, "data": []} for number in range(length)]
        assert {dumps_long(document, "data", each) for each in (1, 2, 3, 9)} == {dumps(document)}
