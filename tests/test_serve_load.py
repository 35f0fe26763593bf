"""Many clients at once: each gets the text that it gets alone, nobody hangs, and no memory is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving import Answered, Server, ask_on, read_events, serving
from support import make_model, series

from gpt2cli.core.engine import Engine
from gpt2cli.options import LoadOptions

WORDS = ("the", "boat", "was", "small", "and", "wanted", "to", "see", "all", "sea", "bird", "hello", "Tim")
CONTEXT = 192


@dataclass(frozen=True)
class Wanted:
    """A request, what the engine is asked for the same, and whether the client leaves in the middle."""

    body: dict[str, Any]
    options: dict[str, Any]
    leaves: bool


def some_request(pick: random.Random) -> Wanted:
    """Of any kind. Prompts begin alike, as those of one program do, or have nothing in common."""
    begin = pick.choice(["", "You are a sailor who tells short stories to a cook. "])
    prompt = begin + " ".join(pick.choice(WORDS) for _ in range(pick.choice([1, 3, 10, 20])))
    several, new = pick.choice([1, 1, 1, 2, 5]), pick.choice([1, 5, 20, 40])
    options: dict[str, Any] = {
        "seed": pick.randrange(2**32 - 8),
        "num_return_sequences": several,
        "max_new_tokens": new,
    }
    body: dict[str, Any] = {"prompt": prompt, "seed": options["seed"], "n": several, "max_tokens": new}
    if several == 1 and pick.random() < 0.3:
        body["temperature"] = options["temperature"] = 0
    for name, values in {
        "temperature": [0.7, 1.3],
        "top_k": [1, 8],
        "top_p": [0.8],
        "min_p": [0.05],
        "repetition_penalty": [1.2],
        "no_repeat_ngram_size": [3],
        "presence_penalty": [1.5],
        "frequency_penalty": [-0.5],
        "ignore_eos": [True],
    }.items():
        if name not in body and pick.random() < 0.25:
            body[name] = options[name] = pick.choice(values)
    if pick.random() < 0.3:
        body["stop"], options["stop"] = ["e", "\n"], ("e", "\n")
    if pick.random() < 0.3:
        body["logprobs"] = pick.choice([0, 3])
    if pick.random() < 0.2:
        body["echo"] = True
    body["stream"] = pick.random() < 0.5
    return Wanted(body, options, pick.random() < 0.15)


def expected_texts(engine: Engine, wanted: Wanted) -> list[str]:
    """What `generate` draws for the same."""
    result = engine.generate(wanted.body["prompt"], engine.options(**wanted.options))
    begin = wanted.body["prompt"] if wanted.body.get("echo") else ""
    return [begin + choice.text for choice in result.choices]


def leave(server: Server, wanted: Wanted, pick: random.Random) -> None:
    """Ask, and go before the answer is whole."""
    connection = server.connect()
    body = {**wanted.body, "max_tokens": 150, "ignore_eos": True, "stop": None}
    connection.request(
        "POST", "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    if body["stream"]:
        with contextlib.closing(connection.getresponse()) as answer:
            for _ in zip(range(pick.randrange(5)), read_events(answer), strict=False):
                pass
    else:
        time.sleep(pick.random() * 0.1)
    connection.close()


def client(server: Server, requests: list[Wanted], engine: Engine, seed: int) -> Counter[str]:
    """One request after the other on one connection, as long as it lasts; how each of them went."""
    pick, found = random.Random(seed), Counter[str]()
    connection = server.connect()
    for wanted in requests:
        if wanted.leaves:
            leave(server, wanted, pick)
            found["left"] += 1
            continue
        try:
            answer = ask_on(connection, "POST", "/v1/completions", wanted.body)
        except (TimeoutError, socket.timeout):  # noqa: UP041
            found["hung"] += 1
            continue
        except (OSError, http.client.HTTPException):
            found["lost"] += 1
            continue
        if answer.status != 200:
            found[f"status {answer.status}"] += 1
        else:
            with ENGINE:
                found["right" if answer.texts == expected_texts(engine, wanted) else "wrong"] += 1
    connection.close()
    return found


ENGINE = threading.Lock()
"""An engine has one stream at a time."""


def crowd(server: Server, engine: Engine, clients: int, each: int, seed: int = 0) -> Counter[str]:
    """How the requests of all clients went."""
    pick = random.Random(seed)
    requests = [[some_request(pick) for _ in range(each)] for _ in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(client, server, mine, engine, n) for n, mine in enumerate(requests)]
        return sum((each.result() for each in done), Counter())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("crowd") / "small", n_positions=CONTEXT, std=0.2)


@pytest.mark.parametrize(
    ("clients", "each"),
    [
        pytest.param(12, 5, id="some"),
        pytest.param(64, series(20, 8), id="64 clients", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_each_gets_its_own_text(model: Path, precision: str, clients: int, each: int) -> None:
    """Of mixed options, lengths, streams and disconnects: none wrong, none lost, none hung."""
    engine = Engine.load(model, LoadOptions(precision=precision, threads=1))  # type: ignore[arg-type]
    with serving("-m", model, "--precision", precision) as server:
        found = crowd(server, engine, clients, each)
        server.wait_until_idle()
        assert server.metric("kv_cache_usage_perc") == 0
        assert server.stop() == 0
    assert set(found) <= {"right", "left"}, found
    assert found.total() == clients * each and found["right"] > found.total() / 2


@pytest.mark.slow
def test_memory_stays_flat(model: Path) -> None:
    """Over 1,200 requests of all kinds, and clients that leave; over 5,000 in the full run."""
    engine = Engine.load(model, LoadOptions(threads=1))
    with serving("-m", model, "--slots", "8") as server:
        memory = []
        for seed in range(series(10, 4)):
            found = crowd(server, engine, 20, series(25, 15), seed)
            assert set(found) <= {"right", "left"}, found
            server.wait_until_idle()
            memory.append(server.memory)
        print([round(each / 1e6, 1) for each in memory])
        assert memory[-1] < memory[2] * 1.05 + 2e6, memory
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        assert descriptors < 40


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 8))])
def test_sigterm_under_load(model: Path, tmp_path: Path, seed: int) -> None:
    """At any moment: every accepted request is answered, or told that it is not; no socket file is left."""
    path, pick = tmp_path / "socket", random.Random(seed)
    answers: list[Answered] = []
    refused = Counter[str]()
    with serving("-m", model, "--uds", path, "--slots", "4") as server:
        stop = threading.Event()

        def ask(number: int) -> None:
            own = random.Random(1000 * seed + number)
            while not stop.is_set():
                try:
                    connection = server.connect()
                except OSError:
                    # The socket is closed: this one was not accepted.
                    refused["not connected"] += 1
                    return
                try:
                    answers.append(ask_on(connection, "POST", "/v1/completions", some_request(own).body))
                except (OSError, http.client.HTTPException) as error:
                    refused[type(error).__name__] += 1
                    return
                finally:
                    connection.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(0.3 + pick.random())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not path.exists()
    assert {answer.status for answer in answers} <= {200, 503}
    for answer in answers:
        assert answer.texts if answer.status == 200 else answer.error["code"] == "unavailable"
    # A connection that the system had taken, and the server not yet, ends with it.
    assert set(refused) <= {"not connected", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"}
