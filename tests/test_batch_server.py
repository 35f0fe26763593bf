"""`batch` with a model on a server: the same rows, whatever becomes of the server meanwhile."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from cli import call, start
from remote_server import error, hang, hostile, raw, reply
from serving import KEY, serving

SEED = ("--seed", "7")
ROWS: list[dict[str, Any]] = [
    {"id": "text", "prompt": "ab", "max_new_tokens": 8},
    {"id": "several", "prompt": "The cat", "n": 2},
    {"id": "ids", "prompt": [97, 98], "logprobs": 2},
    {"id": "talk", "messages": [{"role": "user", "content": "ab"}]},
    {"id": "wrong", "prompt": "ab", "temperature": "hot"},
    {"id": "stream", "prompt": "ab", "stream": True},
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path) -> dict[str, Any]:
    found = {(row := json.loads(line))["id"]: row for line in path.read_text().splitlines()}
    assert len(found) == len(path.read_text().splitlines())
    return found


def test_the_same_rows(tiny_model: Path, tmp_path: Path) -> None:
    """Texts, seeds, counts, and what is wrong with two rows; the key reaches the server and nothing else."""
    rows, keys = write(tmp_path / "in.jsonl", *ROWS), tmp_path / "keys.txt"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    with serving("-m", tiny_model, "--api-key-file", keys) as server:
        at = f"http://127.0.0.1:{server.port}/v1"
        flags = ("--simple", *SEED, "--max-new-tokens", "5", "--top-k", "9")
        there = call("batch", rows, "-m", at, "--api-key-file", keys, *flags, "-o", tmp_path / "there")
        refused = call("batch", rows, "-m", at, "-o", tmp_path / "refused")
    here = call("batch", rows, "-m", tiny_model, *flags, "-o", tmp_path / "here")
    assert (there.code, here.code, refused.code) == (1, 1, 4)
    assert answers(tmp_path / "there") == answers(tmp_path / "here")
    assert KEY not in "".join(path.read_text() for path in tmp_path.glob("there*")) + there.out + there.err
    assert "it wants a key" in refused.err


def test_a_server_that_fails_now_and_then(tmp_path: Path) -> None:
    """What passes is waited for; what does not is the row's error."""
    fine = reply(
        200, {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    )
    busy = error(429, "slow down", retry_after="0")
    rows = write(tmp_path / "in.jsonl", *({"id": f"{n}", "prompt": "a"} for n in range(5)))
    steps = (busy, raw(b""), fine, error(400, "too hot"), reply(200, b"<html>"), fine, reply(200, {}), fine)
    with hostile(*steps) as server:
        out = tmp_path / "out"
        done = call("batch", rows, "-m", server.url, "--simple", "--slots", "1", "--top-k", "3", "-o", out)
        assert done.code == 1 and "may ignore --top-k" in done.err
        failed = {id: row.get("error") for id, row in answers(out).items()}
        assert [failed[f"{n}"] is None for n in range(5)] == [True, False, True, False, True]
        assert failed["1"] == "too hot" and "no answer" in failed["3"]
        assert {body["model"] for body in server.bodies} == {"m"}
        assert all("stream" not in body for body in server.bodies)
        again = call(
            *("batch", rows, "-m", server.url, "--simple", "--slots", "1", "--top-k", "3", "-o", out),
            "--retry-errors",
        )
        assert again.code == 0 and len(answers(out)) == 5


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = call("batch", write(tmp_path / "in", *ROWS), "-m", f"http://127.0.0.1:{port}/v1")
    assert done.code == 4 and "nothing listens there" in done.err


def test_options_of_this_machine(tmp_path: Path) -> None:
    with hostile(reply(200, {}), owned_by="library") as server:
        for flags in (("--device", "cpu"), ("--ray", "local"), ("--top-k", "3")):
            done = call("batch", write(tmp_path / "in", *ROWS), "-m", server.url, *flags)
            assert done.code == 2 and flags[0] in done.err
        assert server.bodies == []


def test_so_many_at_once(tmp_path: Path) -> None:
    """As ``--slots`` says; options by the server's names."""
    fine = reply(200, {"choices": [{"text": "x"}]})
    rows = write(tmp_path / "in", *({"id": f"{n}", "prompt": "a"} for n in range(40)))
    with hostile(fine, owned_by="llamacpp") as server:
        done = call("batch", rows, "-m", server.url, "--slots", "6", "--repetition-penalty", "1.2")
        assert done.code == 0 and len(done.out.splitlines()) == len(server.bodies) == 40
        seeds = {row["response"]["body"]["choices"][0]["seed"] for row in done.events}
        assert seeds == {body["seed"] for body in server.bodies} and len(seeds) == 40
        assert server.most_at_once <= 6
        assert all(body["repeat_penalty"] == 1.2 and body["repeat_last_n"] > 64 for body in server.bodies)


def test_ctrl_c_while_a_server_hangs(tmp_path: Path) -> None:
    rows = write(tmp_path / "in", *({"id": f"{n}", "prompt": "a"} for n in range(9)))
    with hostile(reply(200, {"choices": [{"text": "x"}]}), hang) as server:
        batch = start("batch", rows, "-m", server.url, "--simple", "--slots", "3", "-o", tmp_path / "out")
        end = time.monotonic() + 20
        while not (tmp_path / "out").exists() or not answers(tmp_path / "out") or len(server.bodies) < 4:
            assert time.monotonic() < end
            time.sleep(0.02)
        batch.send_signal(signal.SIGINT)
        _, told = batch.communicate(timeout=20)
    assert batch.returncode == 130 and b"1 of 9 rows are done; the same command goes on" in told
    assert len(answers(tmp_path / "out")) == 1 and b"Traceback" not in told


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again(tiny_model: Path, tmp_path: Path) -> None:
    """Rows wait for it, and all are those of an undisturbed run."""
    rows = write(tmp_path / "in", *({"id": f"{n}", "prompt": "ab" * (n % 9 + 1)} for n in range(300)))
    flags = ("--simple", *SEED, "--max-new-tokens", "40", "--ignore-eos")
    out = tmp_path / "there"
    with serving("-m", tiny_model) as server:
        at, port = f"http://127.0.0.1:{server.port}/v1#tiny-random", server.port
        batch = start("batch", rows, "-m", at, *flags, "-o", out)
        while not (out.exists() and len(out.read_bytes().splitlines()) > 20):
            assert batch.poll() is None
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert len(out.read_bytes().splitlines()) < 300
    time.sleep(1)
    with serving("-m", tiny_model, "--port", str(port)):
        _, told = batch.communicate(timeout=120)
    assert batch.returncode == 0, told
    assert call("batch", rows, "-m", tiny_model, *flags, "-o", tmp_path / "here").code == 0
    assert answers(out) == answers(tmp_path / "here")
