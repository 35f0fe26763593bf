"""A model on our own server says what it says here, token for token."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_screen import CTRL_C, chat
from cli import Outcome, call, run, start
from serving import KEY, Server, serving

SEED = ("--seed", "7")


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    with serving("-m", tiny_model, "--api-key-file", keys) as running:
        yield running


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1#tiny-random"


def both(server: Server, model: Path, *arguments: str, stdin: bytes = b"") -> tuple[Outcome, Outcome]:
    """The same of the server and of this machine."""
    command, *rest = arguments
    there = call(command, "-m", url(server), *SEED, *rest, stdin=stdin, GPT2CLI_API_KEY=KEY)
    here = call(command, "-m", model, *SEED, *rest, stdin=stdin)
    assert here.code == 0, here.err
    assert KEY not in there.out + there.err
    return there, here


TEXTS = [
    ("--max-new-tokens", "20", "ab"),
    ("-n", "3", "--max-new-tokens", "9", "ab"),
    ("--echo", "--greedy", "--max-new-tokens", "9", "-p", "ab"),
    ("--stop", "e", "--stop", "a", "ab"),
    ("--no-stream", "--top-k", "5", "--temperature", "1.5", "--ignore-eos", "ab"),
    ("--min-p", "0.1", "--typical-p", "0.9", "--top-p", "0.8", "--repetition-penalty", "1.3", "ab"),
    ("--no-repeat-ngram-size", "2", "--presence-penalty", "1", "--frequency-penalty", "0.5", "ab"),
    ("--logit-bias", "65=9", "--sanitize", "-p", ""),
]


@pytest.mark.parametrize("arguments", TEXTS, ids=" ".join)
def test_the_same_text(server: Server, tiny_model: Path, arguments: tuple[str, ...]) -> None:
    there, here = both(server, tiny_model, "generate", *arguments)
    assert (there.code, there.out) == (here.code, here.out), there.err
    assert there.err.splitlines()[-1:] == here.err.splitlines()[-1:]


def test_stdin_and_a_terminal(server: Server, tiny_model: Path) -> None:
    there, here = both(server, tiny_model, "generate", "The", "-", stdin=b"cat\n")
    assert there.out == here.out
    for streams in ("out", "out err"):
        seen = [
            call("generate", "-m", model, *SEED, "-n", "2", "ab", tty=streams, GPT2CLI_API_KEY=KEY).out
            for model in (url(server), tiny_model)
        ]
        assert seen[0] == seen[1]


def test_json(server: Server, tiny_model: Path) -> None:
    """Ids, log-probabilities, reasons and counts are those of this machine."""
    there, here = both(server, tiny_model, "generate", "--json", "-n", "2", "--logprobs", "2", "ab")
    one, other = there.document, here.document
    assert set(one) == set(other)
    for mine, theirs in zip(one["choices"], other["choices"], strict=True):
        for name in ("index", "seed", "text", "token_ids", "finish_reason"):
            assert mine[name] == theirs[name]
        for told, known in zip(mine["logprobs"], theirs["logprobs"], strict=True):
            assert (told["token_id"], told["logprob"]) == (known["token_id"], pytest.approx(known["logprob"]))
            ranks = [[entry["logprob"] for entry in each["top_logprobs"]] for each in (told, known)]
            assert ranks[0] == pytest.approx(ranks[1])
    assert one["usage"] == other["usage"]
    assert one["engine"]["server"] == "gpt2cli"
    assert one["options"] == {"logprobs": 2, "max_new_tokens": 128, "num_return_sequences": 2}


def test_jsonl(server: Server, tiny_model: Path) -> None:
    there, here = both(server, tiny_model, "generate", "--jsonl", "--max-new-tokens", "9", "ab")
    wanted = ("event", "index", "token_id", "text", "finish_reason")
    one, other = ([{k: e.get(k) for k in wanted} for e in each.events[1:-1]] for each in (there, here))
    assert one == other


def test_a_file(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    done = call(
        "generate", "-m", url(server), *SEED, "-o", tmp_path / "out.txt", "ab", GPT2CLI_API_KEY=KEY
    )  # fmt: skip
    assert (done.code, done.out) == (0, "")
    assert (tmp_path / "out.txt").read_bytes().decode() == call("generate", "-m", tiny_model, *SEED, "ab").out


def test_refusals(server: Server) -> None:
    """What the server says of a request, in its words and ours."""
    long = call("generate", "-m", url(server), "x" * 80, GPT2CLI_API_KEY=KEY)
    assert long.code == 6
    assert "the model's context is 64" in long.err
    many = call("generate", "-m", url(server), "--json", "--logprobs", "9", "ab", GPT2CLI_API_KEY=KEY)
    assert many.code == 2
    assert "hint: see --logprobs" in many.err
    wrong = call("generate", "-m", url(server) + "x", "ab", GPT2CLI_API_KEY=KEY)
    assert (wrong.code, "there is tiny-random" in wrong.err) == (3, True)
    none = call("generate", "-m", url(server), "ab")
    assert (none.code, "--api-key-file FILE" in none.err) == (4, True)
    bad = call("generate", "-m", url(server), "ab", GPT2CLI_API_KEY="x" * 20)
    assert (bad.code, "the key is refused (401)" in bad.err) == (4, True)
    assert "x" * 20 not in bad.err


def test_the_setting_names_a_server(server: Server, tiny_model: Path) -> None:
    """As any model, with settings of this machine left out aloud."""
    done = call(
        "generate", *SEED, "ab", GPT2CLI_MODEL=url(server), GPT2CLI_API_KEY=KEY, GPT2CLI_OVERFLOW="slide"
    )  # fmt: skip
    assert done.out == call("generate", "-m", tiny_model, *SEED, "ab").out
    assert "the setting overflow does not hold" in done.err


def test_chat(server: Server, tiny_model: Path) -> None:
    """The first answer is the same; each turn is one line, and the next one goes on."""
    there, here = both(server, tiny_model, "chat", "--max-new-tokens", "5", stdin=b"ab\ncd\n")
    assert there.code == 0, there.err
    assert there.out.splitlines()[0] == here.out.splitlines()[0]
    assert len(there.out.splitlines()) == 2
    document = both(server, tiny_model, "chat", "--max-new-tokens", "5", "--json", stdin=b"ab\n")[0].events[0]
    assert document["token_ids"] == []
    assert document["usage"]["completion_tokens"] == 5


def test_chat_by_messages(server: Server, tiny_model: Path) -> None:
    """The server's transcript is ours."""
    arguments = ("--max-new-tokens", "9", "--system", "A talk.")
    there = call(
        "chat", "-m", url(server), *SEED, *arguments, "--format", "template", stdin=b"ab\n",
        GPT2CLI_API_KEY=KEY,
    )  # fmt: skip
    here = call("chat", "-m", tiny_model, *SEED, *arguments, "--format", "transcript", stdin=b"ab\n")
    assert (there.code, there.out) == (0, here.out)


def test_a_chat_outgrows_the_context(server: Server) -> None:
    """It ends with an error and not for good: the oldest turns are dropped."""
    lines = b"a story of a dog\n" * 8
    done = call("chat", "-m", url(server), *SEED, "--max-new-tokens", "9", stdin=lines, GPT2CLI_API_KEY=KEY)
    assert done.out.count("\n") == 8
    assert "the oldest" in done.err
    assert done.out.splitlines()[-1]


def test_compare(server: Server, tiny_model: Path) -> None:
    done = call(
        "compare", "-m", url(server), "-m", tiny_model, *SEED, "--max-new-tokens", "5", "--json", "ab",
        GPT2CLI_API_KEY=KEY,
    )  # fmt: skip
    there, here = done.document["runs"]
    assert there["text"] == here["text"]
    assert there["logprob"] == pytest.approx(here["logprob"], abs=0.05)
    assert here["parts"]["identical"]
    assert here["others"][0]["refused"] == "a model on a server gives none on the texts of others"
    assert there["others"][0]["refused"] in (None, "the text has a character that is not whole")
    table = call("compare", "-m", url(server), "--csv", *SEED, "ab", GPT2CLI_API_KEY=KEY)
    assert next(csv.DictReader(io.StringIO(table.out)))["temperature"] == ""
    words = call("compare", "-m", url(server), "--words", "a", "ab", GPT2CLI_API_KEY=KEY)
    assert (words.code, "--words needs the models on this machine" in words.err) == (2, True)


@pytest.mark.slow
def test_the_server_is_killed() -> None:
    """The text so far stays, then one line says what happened."""
    with serving("--slots", "4") as server:
        process = start(
            "generate", "-m", url_of(server), *SEED, "--ignore-eos", "--max-new-tokens", "500", "A"
        )
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 10)
        server.process.send_signal(signal.SIGSTOP)
        server.process.kill()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert first + out
    assert out.endswith(b"\n")
    lines = [line for line in err.decode().splitlines() if not line.startswith("seed ")]
    assert len(lines) == 2
    assert lines[0].startswith("error: http://127.0.0.1:")
    assert lines[1].startswith("hint: ")


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.mark.slow
def test_chat_on_a_terminal(tmp_path: Path) -> None:
    """Live tokens, /regen, /undo, /set, Ctrl-C in the middle; the key is in no file and no process list."""
    with serving("--slots", "4", "--api-key-file", _key_file(tmp_path)) as server:
        home = tmp_path / "home"
        arguments = ("-m", url_of(server), "--seed", "3", "--max-new-tokens", "450", "--ignore-eos")
        with chat(*arguments, GPT2CLI_API_KEY=KEY, GPT2CLI_HOME=str(home), ready=False) as screen:
            screen.wait(lambda: screen.prompts >= 1)
            shown = run("config", "list").out + Path(f"/proc/{screen.child.pid}/cmdline").read_text()
            assert KEY not in shown
            before = screen.prompts
            screen.send("Once upon a time\r")
            screen.wait(lambda: "there was" in screen.text)
            screen.send(CTRL_C)
            screen.wait(lambda: screen.prompts > before)
            for typed, seen in (
                ("/set max_new_tokens=8", ""),
                ("/regen", ""),
                ("/undo", "is undone"),
                ("/set top_k=3", ""),
                ("A cat", ""),
                ("/model", f"tiny at {url_of(server)} (gpt2cli)"),
                ("/set draft=auto", "draft is for a model on this machine"),
            ):
                screen.ask(typed)
                screen.wait(seen)
            assert screen.leave() == 0
        assert KEY.encode() not in screen.raw
        files = [path for path in home.rglob("*") if path.is_file()]
        assert not any(KEY.encode() in path.read_bytes() for path in files)
        (session,) = home.rglob("sessions/*.jsonl")
        turns = [json.loads(line) for line in session.read_text().splitlines()]
        assert turns[0]["model"] == f"{url_of(server)}#tiny"
        assert turns[1]["finish"] == "interrupted"
        resumed = run(
            "chat", "--resume", session.stem, stdin=b"Then\n",
            env={**os.environ, "GPT2CLI_API_KEY": KEY, "GPT2CLI_HOME": str(home)},
        )  # fmt: skip
        assert resumed.code == 0, resumed.err
        assert resumed.out.strip()


def _key_file(folder: Path) -> Path:
    path = folder / "keys.txt"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path
