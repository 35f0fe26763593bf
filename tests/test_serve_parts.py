"""The parts of the server that decide: turns, beginnings that are kept, schemas, keys."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from numpy_gpt2 import NumpyBackend
from support import make_model

from gpt2cli.api import bodies
from gpt2cli.api.chat import Stripped
from gpt2cli.api.errors import ApiError
from gpt2cli.api.schema import check_body
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.backend import Batch
from gpt2cli.serve.fair import FairQueue
from gpt2cli.serve.guard import Keys
from gpt2cli.serve.prefixes import LEAST, Held, Prefixes, common_length
from gpt2cli.serve.sockets import is_loopback, open_port


class TestTurns:
    def test_keys_and_connections_take_turns(self) -> None:
        queue: FairQueue[str] = FairQueue()
        for entry in ("a1", "a2", "a3"):
            queue.push("A", 1, entry)
        queue.push("A", 2, "b1")
        for entry in ("c1", "c2"):
            queue.push("B", 3, entry)
        order = [queue.pop() for _ in range(len(queue))]
        assert order == ["a1", "c1", "b1", "c2", "a2", "a3"]
        with pytest.raises(IndexError):
            queue.pop()

    def test_who_comes_back_at_once_waits(self) -> None:
        """Or a client with one request after the other would be served between any two of others."""
        queue: FairQueue[str] = FairQueue()
        queue.push("A", 1, "a1")
        assert queue.pop() == "a1"
        queue.push("A", 1, "a2")
        queue.push("B", 2, "b1")
        assert [queue.first(), queue.pop(), queue.pop()] == ["b1", "b1", "a2"]

    @pytest.mark.parametrize("seed", range(5))
    def test_nothing_is_lost(self, seed: int) -> None:
        """Random pushes, pops and removals; the order of one connection stays."""
        pick, queue = random.Random(seed), FairQueue[tuple[int, int, int]]()
        there: list[tuple[int, int, int]] = []
        for number in range(500):
            key, connection = pick.randrange(3), pick.randrange(4)
            if pick.random() < 0.55:
                queue.push(key, connection, (key, connection, number))
                there.append((key, connection, number))
            elif pick.random() < 0.9 and there:
                first = queue.first()
                entry = queue.pop()
                assert entry == first
                assert entry == next(each for each in there if each[:2] == entry[:2])
                there.remove(entry)
            else:
                queue.remove(lambda entry, key=key: entry[0] == key)  # type: ignore[misc]
                there = [each for each in there if each[0] != key]
            assert len(queue) == len(there)

    def test_no_key_waits_for_more_than_the_others_once(self) -> None:
        queue: FairQueue[int] = FairQueue()
        for _ in range(100):
            queue.push("greedy", 1, 0)
        for key in ("b", "c"):
            queue.push(key, 2, 1)
        assert sum(queue.pop() for _ in range(4)) == 2


class TestPrefixes:
    @pytest.fixture
    def backend(self, tmp_path: Path) -> NumpyBackend:
        return NumpyBackend(open_checkpoint(make_model(tmp_path, tokenizer=None)))

    def read(self, backend: NumpyBackend, slot: int, present: int, ids: Sequence[int]) -> None:
        backend.forward(Batch.of([(slot, present, ids[present:])]))

    def test_the_longest_beginning_of_the_same_owner(self, backend: NumpyBackend) -> None:
        prefixes = Prefixes(backend, 4)
        a, b = [*range(20)], [*range(18), 99, 98]
        for owner, ids in (("one", a), ("one", b), ("two", [*range(30)])):
            slot, present = prefixes.begin(owner, ids, ())
            self.read(backend, slot, present, ids)
            prefixes.keep(Held(owner, slot, ids))
        slot, present = prefixes.begin("one", [*range(40)], ())
        assert present == 20
        assert prefixes.begin("one", [*b, 5], ())[1] == 20
        assert prefixes.begin("three", [*range(40)], ())[1] == 0
        assert prefixes.begin("two", [*range(30)], ())[1] == 29

    def test_what_runs_is_copied(self, backend: NumpyBackend) -> None:
        prefixes, ids = Prefixes(backend, 4), [*range(20)]
        slot, _ = prefixes.begin("one", ids, ())
        self.read(backend, slot, 0, ids)
        running = [Held("one", slot, ids)]
        other, present = prefixes.begin("one", [*ids, 50], running)
        assert other != slot and present == 20
        assert (backend.slots[other][:, :, :20] == backend.slots[slot][:, :, :20]).all()
        assert prefixes.begin("two", [*ids, 50], running)[1] == 0

    def test_no_slot_is_lost(self, backend: NumpyBackend) -> None:
        """As many as are kept, whatever comes."""
        pick, prefixes = random.Random(1), Prefixes(backend, 3)
        for _ in range(60):
            ids = [pick.randrange(2) for _ in range(pick.randrange(2, 60))]
            slot, present = prefixes.begin(pick.randrange(2), ids, ())
            assert present < len(ids)
            self.read(backend, slot, present, ids)
            prefixes.keep(Held(pick.randrange(2), slot, ids))
            assert len(backend.slots) <= 3
        while prefixes.give_up_one():
            pass
        assert not backend.slots and prefixes.tokens == 0

    def test_a_slot_that_cannot_be_filled_is_freed(
        self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prefixes, ids = Prefixes(backend, 4), [*range(20)]
        slot, _ = prefixes.begin("one", ids, ())
        self.read(backend, slot, 0, ids)

        def full(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(backend, "copy_slot", full)
        with pytest.raises(MemoryError):
            prefixes.begin("one", [*ids, 50], [Held("one", slot, ids)])
        assert len(backend.slots) == 1

    def test_common_length(self) -> None:
        for length in range(LEAST, 40):
            a, b = [*range(length), 100], [*range(length), 101]
            assert common_length(a, b) == length
            assert common_length(a, a[:-1]) == length


SCHEMAS = {
    "completion": bodies.COMPLETION,
    "chat": bodies.CHAT,
    "embeddings": bodies.EMBEDDINGS,
    "tokenize": bodies.TOKENIZE,
    "detokenize": bodies.DETOKENIZE,
}
VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2.5, "", "x", "float", [], [1], ["x"], [[1]], [[]], {}, {"1": 1}, {"x": 1}),
    *([{"role": "user", "content": "x"}], {"include_usage": True}, [{"role": "user"}], ["x"] * 17, 2**70),
]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_checked_as_jsonschema_does(name: str) -> None:
    """Ours has no library behind it: each field with values of all kinds."""
    schema = SCHEMAS[name]
    theirs = jsonschema.Draft202012Validator(schema)
    needed = {"messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", "tokens": [1]}
    base = {field: needed[field] for field in schema["required"]}
    for field in [*schema["properties"], "unknown"]:
        for value in VALUES:
            body = {**base, field: value}
            try:
                check_body(schema, body)
                fits = True
            except ApiError as error:
                assert error.status == 400 and error.param and error.param.startswith(field)
                fits = False
            assert fits == theirs.is_valid(body), body


def test_white_space_around_an_answer() -> None:
    text = " \n Hello,  you \n there. \n "
    for seed in range(20):
        pick, stripped, at, said = random.Random(seed), Stripped(), 0, ""
        while at < len(text):
            size = pick.randrange(1, 5)
            said += stripped.push(text[at : at + size])
            at += size
        assert said == text.strip()


def test_keys() -> None:
    keys = Keys(["a" * 20, "b" * 20])
    assert [keys.owner(each) for each in (b"a" * 20, b"b" * 20, b"c" * 20, b"", b"a" * 19)] == [
        *(0, 1, None, None, None)
    ]
    assert not Keys([]) and keys


def test_small_packets_are_not_held_back() -> None:
    """asyncio sets TCP_NODELAY for sockets that say that they are TCP; else each answer takes 40 ms more."""
    with contextlib.closing(open_port("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"))
    others = ("0.0.0.0", "::", "192.168.0.1", "localhost.example", "127.0.0.1.example", "", "1")
    assert not any(is_loopback(host) for host in others)
