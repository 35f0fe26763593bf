"""The log of runs and their records: what is kept is given back, and whatever happens to the file is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from runs import record
from support import REPOSITORY, series

from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.hub.resolve import builtin_directory
from gpt2cli.options import GenerateOptions
from gpt2cli.paths import log_file
from gpt2cli.runs import hashes
from gpt2cli.runs import record as record_module
from gpt2cli.runs.compare import changes, first_difference
from gpt2cli.runs.hashes import Stopped, hash_of_model
from gpt2cli.runs.log import BETWEEN_TEXTS, RunLog
from gpt2cli.runs.record import RunEngine, RunModel, RunText, parse_record, read_record, write_record

# Records


@settings(max_examples=20)
@given(
    strategies.text(strategies.characters(exclude_categories=["Cs"])),
    strategies.lists(strategies.text(max_size=9), max_size=2),
)
def test_a_record_is_its_document(prompt: str, texts: list[str]) -> None:
    """JSON and back changes nothing: not the prompt, not a number of the options."""
    options = GenerateOptions(
        temperature=0.1 + 0.2, seed=2**32 - 1, max_length=10, logit_bias=((3, -0.5),), stop=("a", "\u2028")
    )
    prompt = prompt.replace("\0", "")
    whole = record(" b", prompt, options=options, prompt_ids=(1, 2, 3), session="s")
    assert parse_record(json.loads(json.dumps(whole.document())), "x") == whole
    several = record("", prompt, *(text.encode("utf-8", "replace").decode() for text in texts))
    assert parse_record(json.loads(json.dumps(several.document())), "x") == several


def test_a_record_is_a_file(tmp_path: Path) -> None:
    whole = record("ä\u2028 \U0001f40d\x1b\0")
    write_record(tmp_path / "run.json", whole)
    assert read_record(tmp_path / "run.json") == whole
    assert len((tmp_path / "run.json").read_text("utf-8").splitlines()) >= 14


BAD: list[tuple[str, Any]] = [
    ("record", "another"),
    ("format", 0),
    ("format", "1"),
    ("format", True),
    ("version", None),
    ("version", "x" * 101),
    ("command", 5),
    ("session", 5),
    ("started", None),
    ("model", None),
    ("model", {"name": "x" * 1001, "revision": None, "sha256": None}),
    ("model", {"name": "tiny", "revision": 5, "sha256": None}),
    ("model", {"name": "tiny", "revision": None, "sha256": "../" * 21 + "x"}),
    ("prompt", None),
    ("prompt", "a\0b"),
    ("prompt", "a\ud800b"),
    ("prompt_ids", [1.5]),
    ("prompt_ids", [True]),
    ("prompt_ids", [-1]),
    ("prompt_ids", [2**31]),
    ("prompt_ids", "12"),
    ("options", None),
    ("options", {}),
    ("options", {"seed": 1}),
    ("options", {"seed": 1, "max_new_tokens": 5, "unknown": 1}),
    ("options", {"seed": 2**32, "max_new_tokens": 5}),
    ("options", {"seed": 1, "max_new_tokens": 5, "temperature": float("nan")}),
    ("options", {"seed": 1, "max_new_tokens": 5, "top_k": 10**5000}),
    ("options", {"seed": 1, "max_new_tokens": 5, "num_return_sequences": 10**9}),
    ("options", {"seed": 1, "max_new_tokens": 5, "logit_bias": [[1]]}),
    ("options", {"seed": 1, "max_new_tokens": 5, "logit_bias": [[[1], 2]]}),
    ("options", {"seed": 1, "max_new_tokens": 5, "stop": [5]}),
    ("options", {"seed": 1, "max_new_tokens": 5, "rng": []}),
    ("options", {"seed": 1, "max_new_tokens": 5, "rng": "pickle"}),
    ("options", {"seed": 1, "max_new_tokens": 5, "ignore_eos": "no"}),
    ("options", {"seed": 1, "max_new_tokens": 5, "draft": 5}),
    ("engine", None),
    ("engine", {}),
    ("choices", None),
    ("choices", []),
    ("choices", [5]),
    ("choices", [{"seed": -1, "text": "", "token_ids": None, "finish_reason": "eos"}]),
    ("choices", [{"seed": 1, "text": None, "token_ids": None, "finish_reason": "eos"}]),
    ("choices", [{"seed": 1, "text": "", "token_ids": ["x"], "finish_reason": "eos"}]),
    ("choices", [{"seed": 1, "text": "", "token_ids": None, "finish_reason": None}]),
    ("usage", []),
    ("timings", 1),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_strangers_record_is_checked(number: int) -> None:
    """Every field: one line that says what is wrong."""
    name, value = BAD[number]
    for raw in (
        {**record().document(), name: value},
        {k: v for k, v in record().document().items() if k != name},
    ):
        if name in ("session", "prompt_ids") and name not in raw:
            continue
        with pytest.raises(ModelFileError, match=r"^x\.json: ") as caught:
            parse_record(raw, "x.json")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("precision", "fp7"), ("precision", []), ("kernels", "x"), ("kernels", ["x"] * 101)),
        *(("threads", -1), ("libraries", []), ("libraries", {"x": 5}), ("machine", None)),
        ("device", "x" * 101),
    ],
)
def test_a_strangers_engine_is_checked(name: str, value: Any) -> None:
    raw = record().document()
    raw["engine"][name] = value
    with pytest.raises(ModelFileError, match="damaged"):
        parse_record(raw, "x.json")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": "b"}']
)
def test_what_is_no_record(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ModelFileError):
        read_record(tmp_path / "x")


def test_records_too_large_and_too_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path / "x", record())
    with pytest.raises(ModelFileError, match="newer gpt2cli"):
        parse_record({**record().document(), "format": 2}, "x")
    monkeypatch.setattr(record_module, "MAX_BYTES", 100)
    with pytest.raises(ModelFileError, match="larger than 100 bytes"):
        read_record(tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_record(tmp_path / "pipe")


# Comparing


def text(ids: tuple[int, ...] | None, words: str, reason: str = "length") -> RunText:
    return RunText(seed=1, text=words, token_ids=ids, finish_reason=reason)


@pytest.mark.parametrize(
    ("then", "now", "place"),
    [
        (text((1, 2), "ab"), text((1, 2), "ab"), None),
        (text(None, "ab"), text((1, 2), "ab"), None),
        (text((1, 2), "ab"), text((1, 3), "ac"), (1, 1)),
        (text((1, 2), "ab"), text((3,), "ab"), (0, None)),
        (text((1, 2), "ab"), text((1, 2, 3), "abc"), (2, 2)),
        (text((1, 2, 3), "abc"), text((1, 2), "ab"), (2, 2)),
        (text((1,), "a", "eos"), text((1,), "a"), (None, None)),
        (text((1,), "a", "interrupted"), text((1,), "a\ufffd", "interrupted"), None),
        (text((1,), "a", "interrupted"), text((1,), "b", "interrupted"), (None, 0)),
    ],
)
def test_the_first_difference(then: RunText, now: RunText, place: tuple[int, int] | None) -> None:
    same = text((9,), "same")
    found = first_difference([same, then], [same, now])
    assert (None if found is None else (found.token, found.character)) == place
    assert found is None or found.text == 1


def test_what_has_changed() -> None:
    assert changes(record(), record("another text")) == []
    now = replace(
        record(),
        version="9",
        model=RunModel(name="tiny", sha256="cd" * 32),
        engine=RunEngine(
            device="cuda", precision="int8", kernels=("k",), threads=1, machine="y", libraries={"n": "2"}
        ),
    )
    found = {change.what: (change.then, change.now) for change in changes(record(), now)}
    assert found["model hash"] == ("ab" * 6, "cd" * 6) and found["threads"] == ("2", "1")
    assert found.keys() == {
        "model hash",
        "gpt2cli",
        "device",
        "machine",
        "precision",
        "kernels",
        "threads",
        "n",
    }
    unknown = replace(record(), model=RunModel(name="tiny"))
    assert changes(record(), unknown) == []


# The log


def test_what_is_kept_is_given_back() -> None:
    kept = [
        record(),
        record(BETWEEN_TEXTS, "a\x1b[2J", BETWEEN_TEXTS * 2, "", "\U0001f40d\0\r\n"),
        record(command="chat", session="s", prompt_ids=(1, 2)),
        record(texts=(text(None, "from a server", "tool_calls"),), model=RunModel(name="http://x/v1#m")),
    ]
    for number, each in enumerate(kept, 1):
        with RunLog.open() as log:
            assert log.add(each, "/where/it/lay" if number == 2 else None) == number
    with RunLog.open() as log:
        assert [run.record for run in log.newest(9)] == kept[::-1]
        assert log.get(2).record == kept[1] and log.get(2).directory == "/where/it/lay"
        assert [run.id for run in log.newest(2)] == [4, 3] and log.count() == 4
        last = log.last("chat")
        assert last is not None and last.id == 3 and log.last("write") is None
        log.set_hash([1, 3], "ef" * 32)
        assert log.get(3).record.model.sha256 == "ef" * 32
        with pytest.raises(UsageError, match="no run 5"):
            log.get(5)


def test_only_its_owner_reads_it() -> None:
    before = os.umask(0)
    try:
        log = RunLog.open()
        log.add(record())
    finally:
        os.umask(before)
    files = sorted(log_file().parent.glob("*"))
    assert {path.name for path in files} == {f"runs.sqlite3{end}" for end in ("", "-wal", "-shm")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(log_file().parent.stat().st_mode) == 0o700
    log.close()


def searched(words: str) -> list[int]:
    with RunLog.open() as log:
        return [run.id for run in log.newest(9, words)]


@pytest.mark.parametrize("index", [True, False])
def test_search(index: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without FTS5."""
    if not index:
        monkeypatch.setattr(RunLog, "_has_index", lambda log: False)
    with RunLog.open() as log:
        log.add(record("a submarine in the castle", "Once"))
        log.add(record("nothing", 'A Dragon came; it\'s 100% "odd"'))
        log.add(record("a", "b", "the dragons' castle"))
    assert searched("dragon") == [3, 2] and searched("castle dragon") == [3]
    assert searched("marine") == [1] and searched("submarine once") == [1]
    assert searched("100%") == [2] and searched("1%0") == [] and searched('"odd"') == [2]
    assert searched("' OR 1 --") == [] and searched("NOT") == [2] and searched(";") == [2]
    with RunLog.open() as log:
        log.add(record("another dragon"))
        log.remove([2])
    assert searched("dragon") == [4, 3]


def on_disk(word: str) -> bool:
    return any(word.encode() in path.read_bytes() for path in log_file().parent.glob("runs.sqlite3*"))


def test_what_is_removed_is_off_the_disk() -> None:
    with RunLog.open() as log:
        for number in range(40):
            log.add(record(f"text {number} quetzalcoatl" if number == 20 else "verbiage " * 300))
        assert len(log.newest(9, "quetzalcoatl")) == 1 and on_disk("quetzalcoatl")
        log.remove([21])
        assert not on_disk("quetzalcoatl") and log.count() == 39
        with pytest.raises(UsageError, match="no run 21"):
            log.remove([1, 21])
        assert log.count() == 39
        assert log.remove_all() == 39 and log.newest(9) == [] == log.newest(9, "verbiage")
        assert not on_disk("verbiage") and log.add(record()) == 41
        assert [run.id for run in log.newest(9, "once")] == [41]


def test_a_run_that_cannot_be_read_is_left_out() -> None:
    """As of a later version, or damaged."""
    with RunLog.open() as log:
        for _ in range(3):
            log.add(record())
    with sqlite3.connect(log_file()) as database:
        database.execute("UPDATE runs SET options = '{\"later\": 1}' WHERE id = 1")
        database.execute("UPDATE runs SET choices = '[' WHERE id = 2")
    database.close()
    with RunLog.open() as log:
        assert [run.id for run in log.newest(9)] == [3] and log.unreadable == 2
        for number in (1, 2):
            with pytest.raises(ModelFileError, match=f"run {number}"):
                log.get(number)
        log.remove([1, 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def cut_short(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def overwritten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE x (y)")
    database.close()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((garbage, "damaged"), (cut_short, "damaged"), (overwritten, "damaged")),
        *((foreign, "no log of gpt2cli"), (emptied, "no log of gpt2cli"), (newer, "newer gpt2cli")),
    ],
)
def test_a_damaged_log(damage: Any, said: str) -> None:
    """One line and what to do; it is neither repaired nor overwritten."""
    with RunLog.open() as log:
        for number in range(50):
            log.add(record(f"text {number} " * 50))
    damage(log_file())
    before = log_file().read_bytes()
    with pytest.raises(ModelFileError, match=said) as caught, RunLog.open() as log:
        log.newest(100)
        log.add(record())
    assert str(log_file()) in str(caught.value) and caught.value.hint and "move the file" in caught.value.hint
    assert log_file().read_bytes() == before


def test_a_locked_log() -> None:
    RunLog.open().close()
    holder = sqlite3.connect(log_file(), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with RunLog.open(busy_s=0.05) as log:
        assert log.newest(9) == []
        with pytest.raises(Gpt2cliError, match="another process has it locked"):
            log.add(record())
        holder.execute("ROLLBACK")
        assert log.add(record()) == 1
    holder.close()


# Hashes


def never() -> bool:
    return False


def test_hashes_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hashes, "SMALL_BYTES", 10**6)
    model = tmp_path / "model"
    shutil.copytree(builtin_directory(), model)
    weights = model / "model.safetensors"
    with RunLog.open() as log:
        with pytest.raises(Stopped):
            hash_of_model(model, {}, log, stop=lambda: True)
        found = hash_of_model(model, {}, log, stop=never)
        # Now nothing large has to be read.
        assert hash_of_model(model, {}, log, stop=lambda: True) == found
        assert hash_of_model(model, {}, stop=never) == found
        log.keep_hash(weights, "ab" * 32)
        assert hash_of_model(model, {}, log, stop=never) != found
        os.utime(weights, ns=(1, 1))
        assert log.known_hash(weights) is None
        assert hash_of_model(model, {}, log, stop=never) == found
    with (model / "tokenizer.json").open("a") as tokenizer:
        tokenizer.write(" ")
    assert hash_of_model(model, {}, stop=never) != found


def test_a_hugging_face_cache_names_files_by_their_hash(tmp_path: Path) -> None:
    """What is named by its hash is not read."""
    tiny_model = builtin_directory()
    found = hash_of_model(tiny_model, {}, stop=never)
    blob = tmp_path / "blobs" / hashes._read(tiny_model / "model.safetensors", never)
    blob.parent.mkdir()
    blob.write_bytes(b"unread")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in tiny_model.iterdir():
        (snapshot / path.name).symlink_to(blob if path.suffix == ".safetensors" else path)
    assert hash_of_model(snapshot, {}, stop=never) == found


# Processes

WRITER = """
import sys, time
from runs import record
from gpt2cli.runs.log import RunLog
name, count = sys.argv[1], int(sys.argv[2])
longest = 0.0
for number in range(count) if count else iter(int, 1):
    began = time.perf_counter()
    with RunLog.open() as log:
        log.add(record(f"{name} {number}"))
    longest = max(longest, time.perf_counter() - began)
    if not count:
        print(".", end="", flush=True)
print(longest)
"""


def writer(name: str, count: int) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(count)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.parametrize(
    ("processes", "runs"), [(4, 8), pytest.param(20, series(50, 15), marks=pytest.mark.slow)]
)
def test_many_at_once_lose_nothing(processes: int, runs: int) -> None:
    """Also where all of them begin the log. Nobody waits as long as a lock would be given up for."""
    started = [writer(str(number), runs) for number in range(processes)]
    longest = [float(process.communicate(timeout=100)[0]) for process in started]
    assert [process.returncode for process in started] == [0] * processes
    print(f"the longest wait: {max(longest):.3f} s")
    with RunLog.open() as log:
        texts = {run.record.texts[0].text for run in log.newest(10**6)}
    assert texts == {f"{p} {run}" for p in range(processes) for run in range(runs)}
    assert [path.name for path in log_file().parent.iterdir()] == ["runs.sqlite3"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_writer_leaves_a_log() -> None:
    """Whatever was kept before is there, and the next one goes on."""
    total = 0
    for number in range(series(30, 3)):
        process = writer(str(number), 0)
        assert process.stdout is not None
        done = process.stdout.read(3)
        time.sleep(0.001 * number)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=20)
        total += len(done + rest)
        with RunLog.open() as log:
            # One may have been kept and not been told of.
            assert total <= log.count() <= total + number + 1
            assert len(log.newest(10**6)) == log.count()
            check = log._connection.execute("PRAGMA integrity_check").fetchone()
            assert check == ("ok",)
