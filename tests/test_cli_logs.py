"""`logs`, the setting `log`, and `-c`: nothing while off, and never at the cost of a text."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import Outcome, call, start
from remote_server import hostile, stream
from runs import record
from support import REPOSITORY

from gpt2cli.paths import log_file
from gpt2cli.runs.log import RunLog

ON = {"GPT2CLI_LOG": "1"}
SHORT = ("--max-new-tokens", "4", "--threads", "1")


def generate(*arguments: str | os.PathLike[str], **keywords: Any) -> Outcome:
    """With `tiny`, and the log on unless ``keywords`` say otherwise."""
    return call("generate", *SHORT, *arguments, **{**ON, **keywords})


def logged() -> list[Any]:
    """All runs in the log, the oldest first."""
    documents: list[Any] = call("logs", "--json", "-n", "1000").document
    return documents[::-1]


# Off and on


def test_nothing_is_written_while_off(tmp_path: Path) -> None:
    """And sqlite3 is not imported."""
    code = (
        "import sys; from gpt2cli.cli.app import main; code = main(sys.argv[1:]);"
        "kept = {'sqlite3', '_sqlite3', 'gpt2cli.runs.log', 'gpt2cli.runs.record'};"
        "sys.exit(code or bool(kept & {*sys.modules}))"
    )
    for arguments in (("generate", *SHORT, "Once"), ("chat", *SHORT)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], input=b"Once\n", capture_output=True, cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr
    assert not list(Path(os.environ["GPT2CLI_HOME"]).rglob("*sqlite*"))
    assert call("logs").out == "" and "gpt2cli logs on turns it on" in call("logs").err
    assert not log_file().exists()


def test_on_and_off() -> None:
    assert str(log_file()) in call("logs", "on").err
    assert call("config", "get", "log").out == "true\n"
    assert call("generate", *SHORT, "Once").code == 0
    assert call("logs", "off").err.startswith("runs are not logged any more; what is there stays")
    assert call("generate", *SHORT, "Twice").code == 0
    assert [entry["prompt"] for entry in logged()] == ["Once"]
    assert "comes first" in call("logs", "on", GPT2CLI_LOG="0").err


# What is kept


def test_a_run_has_all_that_decides_its_text() -> None:
    arguments = ("-n", "2", "--seed", "5", "--stop", "x", "--logit-bias", "7=-1", "--precision", "int8")
    done = generate(*arguments, "--json", " Once \n upon\t")
    (entry,) = logged()
    document = done.document
    assert [c["text"] for c in entry["choices"]] == [c["text"] for c in document["choices"]]
    assert [c["token_ids"] for c in entry["choices"]] == [c["token_ids"] for c in document["choices"]]
    assert entry["prompt"] == " Once \n upon\t" and entry["options"].pop("seed") == 5
    assert entry["options"].pop("rng") == "default" and entry["options"] == document["options"]
    document["engine"].pop("cache")
    assert {name: entry["engine"][name] for name in document["engine"]} == document["engine"]
    assert entry["engine"]["precision"] == "int8" and "numpy" in entry["engine"]["libraries"]
    assert entry["model"]["name"] == "tiny" and len(entry["model"]["sha256"]) == 64
    assert entry["usage"] == document["usage"] and entry["timings"].keys() == document["timings"].keys()


def test_what_is_kept_is_not_cleaned(tiny_model: Path) -> None:
    """--sanitize is for who reads; the tokens are what they are."""
    say = ("-m", tiny_model, "--seed", "3", "--max-new-tokens", "40", "ab")
    raw, clean = generate("--json", *say).document, generate("--json", "--sanitize", *say).document
    first, second = logged()
    assert raw["choices"][0]["text"] != clean["choices"][0]["text"]
    assert first["choices"] == second["choices"] and first["choices"][0]["text"] == raw["choices"][0]["text"]
    # A path is nobody's business.
    assert first["model"]["name"] == tiny_model.name and str(tiny_model) not in json.dumps(first)


def test_turns_of_a_chat() -> None:
    """Each is a run; a saved session has its name there."""
    lines = b"Once upon a time\nAnd then\n"
    done = call("chat", *SHORT, "--seed", "3", "--save", "tale", stdin=lines, **ON)
    assert done.code == 0
    call("chat", *SHORT, stdin=b"Once\n", **ON)
    first, second, third = logged()
    assert [entry["session"] for entry in (first, second)] == ["tale", "tale"]
    assert third["session"].startswith("unsaved-") and first["command"] == "chat"
    assert second["prompt"].startswith(first["prompt"] + first["choices"][0]["text"].rstrip())
    assert len(second["prompt_ids"]) == second["usage"]["prompt_tokens"]
    assert [entry["options"]["seed"] for entry in (first, second)] == [3, 4]


def test_a_model_on_a_server() -> None:
    with hostile(stream("one ", "two")) as server:
        assert call("generate", "-m", server.url, "--top-k", "5", "ab", **ON).code == 0
        (entry,) = logged()
        assert entry["model"]["name"] == f"{server.url}#m" and entry["engine"]["device"] == "server"
        assert entry["choices"][0]["text"] == "one two" and entry["choices"][0]["token_ids"] is None
        assert "on a server" in call("replay", "1").err
    with hostile(stream("three")) as server:
        with sqlite3.connect(log_file()) as database:
            database.execute("UPDATE runs SET model = ?", (f"{server.url}#m",))
        database.close()
        assert call("-c", **ON).out == "three\n"
        assert server.bodies[0]["prompt"] == "abone two" and server.bodies[0]["top_k"] == 5
        assert "temperature" not in server.bodies[0]
    refused = call("generate", "-m", server.url, "--record", "x.json", "ab")
    assert refused.code == 2 and "--record is for a model on this machine" in refused.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run(number: int, code: int) -> None:
    """With what came until then; the same again ends there."""
    long = ("--max-new-tokens", "1000000", "--overflow", "slide", "--ignore-eos", "--seed", "1")
    process = start("generate", *long, "Once", env={**os.environ, **ON})
    assert process.stdout is not None
    begun = process.stdout.read(20)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    (entry,) = logged()
    (choice,) = entry["choices"]
    assert choice["finish_reason"] == "interrupted" and choice["text"] == (begun + out).decode().removesuffix(
        "\n"
    )
    assert call("replay", "1").out == choice["text"] + "\n"
    assert call("replay", "1", "--check").out == "the same text, bit for bit\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
def test_a_reader_that_leaves() -> None:
    long = ("--max-new-tokens", "300", "--overflow", "slide", "--ignore-eos", "--seed", "1")
    process = start("generate", *long, "Once", env={**os.environ, **ON})
    assert process.stdout is not None
    begun = process.stdout.read(9)
    process.stdout.close()
    assert process.wait(60) == 141
    (entry,) = logged()
    assert entry["choices"][0]["text"].startswith(begun.decode())
    assert call("replay", "1", "--check").code == 0


# What may go wrong


@pytest.fixture
def small(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded at once is the default."""
    monkeypatch.setenv("GPT2CLI_MODEL", str(tiny_model))


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file may become larger."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def same_but_for_a_warning(*, said: str) -> None:
    """A run with the log on and one with it off: they differ in one line on stderr."""
    off, on = (generate("--seed", "1", "Once", GPT2CLI_LOG=each) for each in "01")
    assert (on.code, on.out) == (off.code, off.out) and on.code == 0
    new = [line for line in on.err.splitlines() if line not in off.err.splitlines()]
    assert len(new) == 1 and new[0].startswith("warning: the run was not logged: "), on.err
    assert said in new[0]
    chats = [call("chat", *SHORT, "--seed", "1", stdin=b"a\nb\n", GPT2CLI_LOG=on) for on in "01"]
    assert chats[0].out == chats[1].out and chats[1].code == 0
    # Once is enough.
    assert chats[1].err.count("not logged") == 1


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("room", [0, 9000])
def test_a_full_disk(begun: bool, room: int, small: None) -> None:
    """Neither text nor exit code; what was logged before can be read, and later the log goes on."""
    if begun:
        with RunLog.open() as log:
            log.add(record())
    with file_size(room):
        same_but_for_a_warning(said=str(log_file()))
    assert len(logged()) == begun
    assert "warning" not in generate("Once").err and len(logged()) == begun + 1
    assert {path.name for path in log_file().parent.glob("*runs*")} == {"runs.sqlite3"}


def test_a_disk_that_fills_in_the_middle(small: None) -> None:
    """There is room for what several processes share, and not for the journal of a long run."""
    generate("--seed", "1", "warm")
    with file_size(40_000):
        assert "warning" not in generate("Once").err
        long = generate("--overflow", "truncate", "Once upon a time " * 4000)
        assert long.code == 0 and "the run was not logged" in long.err
    assert [entry["prompt"] for entry in logged()] == ["warm", "Once"]


def garbage() -> None:
    log_file().write_bytes(b"garbage" * 1000)


def newer() -> None:
    with sqlite3.connect(log_file()) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()


def no_folder() -> None:
    for path in log_file().parent.glob("runs*"):
        path.unlink()
    log_file().parent.rename(log_file().parent.with_name("elsewhere"))
    log_file().parent.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(garbage, "it is damaged"), (newer, "written by a newer gpt2cli"), (no_folder, "File exists")],
)
def test_a_log_that_cannot_be_written(damage: Any, said: str, small: None) -> None:
    RunLog.open().close()
    damage()
    same_but_for_a_warning(said=said)
    listed = call("logs")
    assert "Traceback" not in listed.err and (listed.code == 5) == (damage is not no_folder)


def test_a_locked_log(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2cli.runs.log.BUSY_S", 0.1)
    monkeypatch.setattr("gpt2cli.runs.log.BUSY_AGAIN_S", 0.1)
    RunLog.open().close()
    holder = sqlite3.connect(log_file(), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    same_but_for_a_warning(said="another process has it locked")
    holder.close()


def test_quiet(small: None) -> None:
    RunLog.open().close()
    garbage()
    assert generate("-q", "--seed", "1", "Once").err == ""


# Listing


@pytest.fixture
def some() -> None:
    with RunLog.open() as log:
        log.add(record(" upon a \x1b[2Jtime", "Once"))
        log.add(record("one", "A dragon", "two\n"))
        log.add(record("so", "User: hello " * 20, command="chat", session="tale"))


def test_lists(some: None) -> None:
    lines = call("logs").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["3", "2", "1"]
    assert lines[1].split("\t")[1:] == [
        "2026-01-02T03:04:05+00:00",
        "generate",
        "tiny",
        "7",
        "A dragon",
        "one --- two",
    ]
    assert len(call("logs", "-n", "2").out.splitlines()) == 2
    assert call("logs", "--search", "dragon two").out.startswith("2\t")
    assert call("logs", "--search", "unicorn").out == ""
    assert call("logs", "-n", "0").code == 2
    on_terminal = call("logs", tty="out err", COLUMNS="80").out
    assert "\x1b[2J" not in on_terminal and max(map(len, on_terminal.splitlines())) < 100
    assert [line.split()[0] for line in on_terminal.splitlines()[1:]] == ["3", "2", "1"]


def test_one_run(some: None) -> None:
    shown = call("logs", "show", "2").out
    assert "A dragontwo\n" in shown and "text 2, seed 8, ended by length" in shown and "seed 7, " in shown
    assert "\x1b[2J" in call("logs", "show", "1").out
    assert "\x1b[2J" not in call("logs", "show", "1", tty="out").out
    assert call("logs", "show", "2", "--json").document == logged()[1]
    missing = call("logs", "show", "9")
    assert missing.code == 2 and "there is no run 9" in missing.err
    for option in (("--json",), ("-n", "3"), ("--search", "dragon")):
        misplaced = call("logs", *option, "show", "1")
        assert misplaced.code == 2 and "does not go with logs show" in misplaced.err and not misplaced.out
    assert call("logs", "show", "9" * 30).code == 2 and call("logs", "show", "x").code == 2


def test_removing(some: None) -> None:
    assert call("logs", "rm").code == call("logs", "rm", "1", "--all").code == 2
    assert call("logs", "rm", "1", "9").code == 2 and len(logged()) == 3
    assert call("logs", "rm", "1", "3", "3").code == 0
    assert [entry["id"] for entry in logged()] == [2]
    assert call("logs", "rm", "--all").code == 2
    assert "nothing was removed" in call("logs", "rm", "--all", stdin=b"n\n", tty="in out err").err
    assert call("logs", "rm", "--all", stdin=b"y\n", tty="in out err").code == 0
    assert logged() == []
    log_file().unlink()
    assert "the log is empty" in call("logs", "rm", "1").err


# Going on


def test_going_on() -> None:
    """The same model, precision and options, and a new seed."""
    refused = call("-c")
    assert refused.code == 2 and "gpt2cli logs on" in refused.err and len(refused.err.splitlines()) == 2
    assert "no run in the log yet" in call("-c", **ON).err
    arguments = ("--precision", "int8", "--temperature", "0.5", "--stop", "x", "-n", "2", "--seed", "5")
    first = generate(*arguments, "--json", "Once upon").document
    second = call("-c", "--threads", "1", "--json", **ON).document
    assert second["prompt"] == "Once upon" + first["choices"][0]["text"]
    assert second["engine"]["precision"] == "int8" and second["seed"] != 5
    changed = {**first["options"], "num_return_sequences": 1}
    assert second["options"] == changed
    third = call("--continue", "--seed", "9", "--max-new-tokens", "2", "--json", "And then", **ON).document
    assert third["prompt"] == second["prompt"] + second["choices"][0]["text"] + " And then"
    assert third["seed"] == 9 and third["options"] == {**changed, "max_new_tokens": 2}


def test_going_on_with_what_has_no_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is found again from elsewhere; the length of a whole text is not that of the next."""
    monkeypatch.chdir(tiny_model.parent)
    first = call("generate", "-m", f"./{tiny_model.name}", "--max-length", "6", "--json", "ab", **ON).document
    call("chat", *SHORT, stdin=b"Once\n", **ON)
    monkeypatch.chdir(tmp_path)
    second = call("-c", "--json", "--max-new-tokens", "3", **ON).document
    assert second["prompt"] == "ab" + first["choices"][0]["text"].rstrip("\ufffd")
    assert second["options"]["max_length"] is None
    # Another model takes the text and not the precision.
    assert call("-c", "-m", "tiny", *SHORT, **ON).code == 0


def test_going_on_reads_stdin_only_when_asked(small: None) -> None:
    generate("Once")
    assert generate("--continue", "--json", stdin=b"not this").document["prompt"] == (
        "Once" + logged()[0]["choices"][0]["text"].rstrip("\ufffd")
    )
    assert generate("-c", "--json", "-", stdin=b"this").document["prompt"].endswith("this")


def test_going_on_after_a_nul_that_was_drawn(small: None) -> None:
    """A model may draw one; no prompt has one, and a run whose prompt had one could not be read again."""
    with RunLog.open() as log:
        log.add(record("x\0y"))
    for _ in range(2):
        assert "\0" not in generate("-c", "--json").document["prompt"]
    assert len(logged()) == 3


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode there")
def test_places_of_any_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for something in an address, and bytes that are no UTF-8."""
    place = tmp_path / os.fsdecode(b"a b#c?d%20e\xff\xfe")
    (place / "home").mkdir(parents=True)
    model = place / os.fsdecode(b"model\xff")
    shutil.copytree(tiny_model, model)
    monkeypatch.setenv("GPT2CLI_HOME", str(place / "home"))
    first = generate("-m", model, "--seed", "1", "ab")
    assert first.code == 0 and first.err == "seed 1\n"
    assert call("replay", "1", "--check").out == "the same text, bit for bit\n"


def test_what_is_searched_for_has_an_end(some: None) -> None:
    assert call("logs", "--search", "x " * 499).code == 0
    assert call("logs", "--search", "x" * 1001).code == 2
