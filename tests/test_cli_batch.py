"""`gpt2cli batch`: rows in, rows out, nothing done twice or lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli import call, start
from support import make_model

from gpt2cli.batch.rows import read_line

KILLS = int(os.environ.get("GPT2CLI_KILLS", "10"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "random", std=0.05)


def row(id: str, prompt: str = "ab", url: str = "completions", **body: Any) -> dict[str, Any]:
    """A line in OpenAI's form."""
    body = {"prompt": prompt, **body} if url == "completions" else body
    return {"custom_id": id, "method": "POST", "url": f"/v1/{url}", "body": body}


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def answers(path: Path) -> dict[str, Any]:
    """The lines of an output by their ids, without what may differ between two runs: times."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        document = json.loads(re.sub(r'"created":\d+', '"created":0', line))
        assert document.get("custom_id", document.get("id")) not in found, "a row is there twice"
        found[document.get("custom_id", document.get("id"))] = document
    return found


def texts(path: Path) -> dict[str, str]:
    """The texts of `--simple`."""
    return {id: document["text"] for id, document in answers(path).items()}


def test_openai_form(model: Path, tmp_path: Path) -> None:
    """Both endpoints, in OpenAI's form of an output; the answers are those of the server's API."""
    messages = [{"role": "user", "content": "Hello"}]
    rows = write(
        tmp_path / "in.jsonl",
        row("one", max_tokens=4, logprobs=1, seed=9),
        row("two", url="chat/completions", messages=messages, max_completion_tokens=5),
    )
    done = call("batch", "-m", model, rows, "-o", tmp_path / "out.jsonl", "--max-new-tokens", "3")
    assert done.code == 0 and done.out == "", done.err
    found = answers(tmp_path / "out.jsonl")
    one, two = found["one"], found["two"]
    assert sorted(one) == ["custom_id", "error", "id", "response"] and one["error"] is None
    assert one["response"]["status_code"] == 200 and one["id"].startswith("batch_req_")
    choice = one["response"]["body"]["choices"][0]
    assert choice["seed"] == 9 and len(choice["logprobs"]["tokens"]) == 4
    assert two["response"]["body"]["object"] == "chat.completion"
    assert two["response"]["body"]["usage"]["completion_tokens"] == 5
    alone = call("generate", "-m", model, "-q", "--seed", "9", "--max-new-tokens", "4", "--json", "ab")
    assert alone.document["choices"][0]["text"] == choice["text"]


def test_plain_lines_and_stdin(model: Path, tmp_path: Path) -> None:
    """Lines are prompts as they stand; blank ones are none; stdout where no file is named."""
    flags = ("batch", "-m", model, "-", "--simple", "--seed", "1", "--max-new-tokens", "3")
    done = call(*flags, stdin=b"\xef\xbb\xbfab\r\n\n  \ncd")
    assert done.code == 0
    assert sorted(event["id"] for event in done.events) == ["line-1", "line-4"]
    assert {event["completion_tokens"] for event in done.events} == {3}
    for event in done.events:
        prompt = {"line-1": "ab", "line-4": "cd"}[event["id"]]
        alone = call(
            "generate", "-m", model, "-q", "--seed", str(event["seed"]), "--max-new-tokens", "3", prompt
        )
        assert alone.out.rstrip("\n") == event["text"].rstrip("\n")
    braces = call(*flags, "--lines", stdin=b'{"prompt": "ab"}\n')
    assert braces.events[0]["prompt_tokens"] == 16


def test_own_form(model: Path, tmp_path: Path) -> None:
    """Options by the names of `generate` and of the API; flags for what a row does not say."""
    rows = write(
        tmp_path / "in.jsonl",
        {"id": 7, "prompt": "ab", "max_new_tokens": 3, "num_return_sequences": 2},
        {"prompt": "ab", "temperature": 0, "max_tokens": 4},
        {"id": "talk", "messages": [{"role": "user", "content": "ab"}]},
    )
    done = call("batch", "-m", model, rows, "--simple", "--max-new-tokens", "6", "--top-k", "5")
    assert done.code == 0, done.err
    found = {event["id"]: event for event in done.events}
    assert len(found["7"]["texts"]) == 2 and found["7"]["completion_tokens"] == 6
    assert found["line-2"]["completion_tokens"] == 4 and found["talk"]["completion_tokens"] == 6


HOSTILE: dict[str, bytes] = {
    "type": json.dumps(row("type", temperature="hot")).encode(),
    "range": json.dumps(row("range", top_p=7)).encode(),
    "unknown": json.dumps(row("unknown", nothing=1)).encode(),
    "outside": json.dumps({**row("outside"), "more": 1}).encode(),
    "url": json.dumps(row("url", url="embeddings")).encode(),
    "model": json.dumps(row("model", model="gpt-4")).encode(),
    "stream": json.dumps(row("stream", stream=True)).encode(),
    "surrogate": json.dumps(row("surrogate", prompt="a\ud800")).encode(),
    "nan": b'{"custom_id": "nan", "url": "/v1/completions", "body": {"prompt": "a", "temperature": NaN}}',
    "line-10": b'{"custom_id": "torn", "body',
    "line-11": b"[1]",
    "line-12": b'{"custom_id": ["a"], "url": "/v1/completions", "body": {"prompt": "a"}}',
    "line-13": b"{NaN" + b"[" * 3000,
    "utf8": b'{"custom_id": "utf8", "url": "/v1/completions", "body": {"prompt": "\xff"}}',
    "large": json.dumps(row("large", prompt="x" * 2_000_000)).encode(),
    "body": b'{"custom_id": "body", "url": "/v1/completions", "body": 3}',
    "empty": b'{"id": "empty"}',
}


def test_hostile_rows(model: Path, tmp_path: Path) -> None:
    """Each has a line that says what is wrong with it; the others are done; exit code 1."""
    good = [row(f"good{n}", max_tokens=3) for n in range(3)]
    twice = json.dumps({**row("good1", max_tokens=3)}).encode()
    rows = write(tmp_path / "in.jsonl", *HOSTILE.values(), *good, twice)
    out = tmp_path / "out.jsonl"
    done = call("batch", "-m", model, rows, "-o", out)
    wrong = len(HOSTILE) + 1
    assert done.code == 1 and f"error: {wrong} of {wrong + 3} rows have an error in {out}" in done.err
    documents = [json.loads(line) for line in out.read_text().splitlines()]
    failed = {each["custom_id"]: each for each in documents if each["error"] is not None}
    assert sorted(failed) == sorted([*HOSTILE, "good1"])
    assert all(each["response"]["status_code"] in (400, 404) for each in failed.values())
    assert failed["good1"]["error"]["code"] == "duplicate_id"
    assert sum(each["error"] is None for each in documents) == 3
    # Nothing is run again, and the code is the same.
    again = call("batch", "-m", model, rows, "-o", out)
    assert again.code == 1 and len(out.read_text().splitlines()) == wrong + 3


def test_rows_nested_as_deep_as_can_be_read() -> None:
    """What can just be read may be too deep to be written again, for its key."""
    for depth in range(sys.getrecursionlimit() - 120, sys.getrecursionlimit() + 20):
        nested = b"[" * depth + b"]" * depth
        for line in (
            b'{"id": "x", "prompt": ' + nested + b"}",
            b'{"url": "x", "body": {"y": ' + nested + b"}}",
        ):
            asked = read_line(line, 1, as_json=True)
            assert asked.error is not None or asked.body is not None


def test_retry_errors(model: Path, tmp_path: Path) -> None:
    """Rows with errors are taken out and run again; a row that was mended is another one anyway."""
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(rows, row("a", max_tokens=2), row("b", max_tokens=2, top_p=7))
    assert call("batch", "-m", model, rows, "-o", out, "--seed", "1").code == 1
    write(rows, row("a", max_tokens=2), row("b", max_tokens=2))
    done = call("batch", "-m", model, rows, "-o", out, "--retry-errors")
    assert done.code == 0, done.err
    assert sorted(answers(out)) == ["a", "b"]


def many(path: Path, count: int, **options: Any) -> Path:
    """Prompts of mixed lengths."""
    chance = random.Random(1)
    prompts = ["ab c" * chance.randint(1, 8) for _ in range(count)]
    return write(path, *({"id": f"r{n}", "prompt": p, **options} for n, p in enumerate(prompts)))


def test_what_is_done_is_not_done_again(model: Path, tmp_path: Path) -> None:
    """A torn last line goes, a damaged one too; rows in the middle are run again; the texts are the same."""
    rows, out = many(tmp_path / "in.jsonl", 12, max_tokens=4), tmp_path / "out.jsonl"
    flags = ("batch", "-m", model, rows, "-o", out, "--simple", "--slots", "3")
    assert call(*flags, "--seed", "5").code == 0
    whole = answers(out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + b"\0" * 40 + b"\n" + b"".join(lines[4:6]) + lines[7][:30])
    resumed = call(*flags)
    assert resumed.code == 0 and "5 of 12 rows are done; going on" in resumed.err
    assert "1 damaged lines are dropped" in resumed.err
    assert answers(out) == whole
    before = out.read_bytes()
    assert "12 of 12 rows are done\n" in call(*flags).err and out.read_bytes() == before


def test_another_job_is_refused(model: Path, tmp_path: Path) -> None:
    rows, out = many(tmp_path / "in.jsonl", 2, max_tokens=2), tmp_path / "out.jsonl"
    flags = ("batch", "-m", model, rows, "-o", out)
    assert call(*flags, "--seed", "5").code == 0
    before = out.read_bytes()
    other = make_model(tmp_path / "other", seed=1)
    for more, what in (
        (("--seed", "6"), "seed: 5, now 6"),
        (("--temperature", "0.5"), "temperature: none, now 0.5"),
        (("--simple",), "form: openai, now simple"),
        (("--shard", "1/2"), "shard: none, now 1/2"),
        (("-m", other), "model: "),
    ):
        done = call(*flags, *more)
        assert done.code == 2 and f"{out} was begun with another {what}" in done.err
        assert done.err.splitlines()[1].startswith("hint: ")
    (tmp_path / "out.jsonl.manifest.json").unlink()
    assert call(*flags).code == 2 and out.read_bytes() == before


def test_shards(model: Path, tmp_path: Path) -> None:
    """Three shards, merged, are one run; a shard that is missing or not complete is named."""
    rows = many(tmp_path / "in.jsonl", 10, max_tokens=3)
    flags = ("batch", "-m", model, rows, "--simple", "--seed", "5")
    outs = [tmp_path / f"out{n}.jsonl" for n in (1, 2, 3)]
    for number, out in enumerate(outs, 1):
        assert call(*flags, "--shard", f"{number}/3", "-o", out).code == 0
    whole, merged = tmp_path / "whole.jsonl", tmp_path / "merged.jsonl"
    assert call(*flags, "-o", whole).code == 0
    assert call("batch", "--merge", outs[2], outs[0], outs[1], "-o", merged).code == 0
    assert answers(merged) == answers(whole)
    # The merged file is the output of the whole job.
    assert "10 of 10 rows are done" in call(*flags, "-o", merged).err
    missing = call("batch", "--merge", *outs[:2], "-o", merged)
    assert missing.code == 2 and "shard 3/3 is missing" in missing.err
    torn = outs[1].read_bytes()
    outs[1].write_bytes(torn[:-5])
    short = call("batch", "--merge", *outs, "-o", merged)
    assert short.code == 2 and "2 of its 3 rows are there" in short.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--shard", "1/2"), "--shard needs --seed"),
        (("--shard", "3/2", "--seed", "1"), "is not I/N"),
        (("--merge",), "--merge needs -o"),
        (("--retry-errors",), "--retry-errors needs -o"),
        (("--workers", "2"), "--workers is for --ray"),
        (("--lines", "--from-jsonl"), "do not go together"),
        (("--slots", "0"), "slots"),
        (("--top-p", "3"), "top-p"),
        (("-o", "/nowhere/x.jsonl"), "there is no directory"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    done = call("batch", write(tmp_path / "in", b"ab"), *arguments)
    assert done.code == 2 and what in done.err and done.out == ""
    assert len(done.err.splitlines()) <= 2


def test_nothing_in_the_input(tmp_path: Path) -> None:
    assert "cannot read" in call("batch", tmp_path / "none").err
    done = call("batch", "-", stdin=b"\n\n")
    assert done.code == 2 and "holds no prompt" in done.err


def test_a_disk_that_fills(model: Path, tmp_path: Path) -> None:
    """A clear error, no torn line, and the same command goes on."""
    rows, out = many(tmp_path / "in.jsonl", 12, max_tokens=3), tmp_path / "out.jsonl"
    flags = ("batch", "-m", model, rows, "-o", out, "--slots", "2", "--seed", "5")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        full = call(*flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.code == 1 and f"cannot write {out}: File too large" in full.err
    assert "the same command goes on" in full.err
    assert 0 < out.stat().st_size <= 4000 and out.read_bytes().endswith(b"\n")
    assert call(*flags).code == 0
    assert len(answers(out)) == 12


def test_two_at_once(model: Path, tmp_path: Path) -> None:
    """Two processes do not write one file."""
    from gpt2cli.jobs.rowfile import RowFile

    rows, out = many(tmp_path / "in.jsonl", 2, max_tokens=2), tmp_path / "out.jsonl"
    with RowFile(out):
        done = call("batch", "-m", model, rows, "-o", out)
    assert done.code == 1 and "another process is writing it" in done.err


def test_a_bar_on_a_terminal_alone(model: Path, tmp_path: Path) -> None:
    """No escape code leaves into a pipe."""
    rows = many(tmp_path / "in.jsonl", 20, max_tokens=16)
    flags = ("batch", "-m", model, rows, "--slots", "2", "--seed", "1")
    piped = call(*flags, "-o", tmp_path / "a.jsonl")
    assert "\x1b" not in piped.err + piped.out and "20 rows" in piped.err
    seen = call(*flags, "-o", tmp_path / "b.jsonl", tty="err", COLUMNS="120")
    assert "of 20 rows" in seen.err and "\x1b[" in seen.err


def test_features_and_score_in_shards(model: Path, tmp_path: Path) -> None:
    """The same shards, and `batch --merge` puts them together in the order of the input."""
    lines = tmp_path / "in.txt"
    lines.write_text("".join(f"{'ab' * (n % 5 + 1)} c\n" for n in range(9)))
    for command, more in (("features", ("--pool", "mean")), ("score", ("--jsonl",))):
        flags = (command, "-m", model, "--lines", "-f", lines, *more)
        outs = [tmp_path / f"{command}{n}.jsonl" for n in (1, 2, 3)]
        for number, out in enumerate(outs, 1):
            done = call(*flags, "--shard", f"{number}/3", "-o", out)
            assert done.code == 0, done.err
        whole, merged = tmp_path / f"{command}.jsonl", tmp_path / f"{command}.merged.jsonl"
        assert call(*flags, "-o", whole).code == 0
        done = call("batch", "--merge", *outs, "-o", merged)
        assert done.code == 0, done.err
        ours, theirs = (
            [json.loads(line) for line in path.read_text().splitlines()] for path in (merged, whole)
        )
        assert [each.get("index") for each in ours] == [each.get("index") for each in theirs]
        last, wanted = ours.pop(), theirs.pop()
        if command == "score":
            assert last["total"]["texts"] == 9
            for name, value in wanted["total"].items():
                assert last["total"][name] == pytest.approx(value)


CUT = """
import os, signal, sys
from gpt2cli.jobs import standing
from gpt2cli.cli.app import main

standing.FIRST_AFTER_S = standing.SAVE_EVERY_S = 0.0
save, calls = standing.Standing.save, [0]

def falling(self, state, *, now=False):
    save(self, state, now=now)
    calls[0] += 1
    if calls[0] == 30:
        os.kill(os.getpid(), signal.SIGKILL)

standing.Standing.save = falling
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_features_go_on(model: Path, tmp_path: Path) -> None:
    """They began anew, and held everything until the end."""
    lines = tmp_path / "in.txt"
    lines.write_text("".join(f"{'ab' * (n % 5 + 1)} c\n" for n in range(80)))
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    flags = ("features", "-m", os.fspath(model), "--lines", "-f", os.fspath(lines), "--pool", "mean")
    flags = (*flags, "--batch-tokens", "64")
    command = [sys.executable, "-c", CUT, *flags, "-o", os.fspath(out)]
    killed = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    resumed = call(*flags, "-o", out)
    assert resumed.code == 0 and "going on at line 31" in resumed.err, resumed.err
    assert call(*flags, "-o", whole, "--no-resume").code == 0
    assert len(out.read_text().splitlines()) == 80
    assert [json.loads(line)["token_ids"] for line in out.read_text().splitlines()] == [
        json.loads(line)["token_ids"] for line in whole.read_text().splitlines()
    ]
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.jsonl", "whole.jsonl"]


def to_its_end(*arguments: str | os.PathLike[str]) -> None:
    process = start(*arguments)
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err


@pytest.mark.slow
def test_killed_again_and_again(model: Path, tmp_path: Path) -> None:
    """kill -9 at any moment: the output is that of an undisturbed run but for order and times.

    ``GPT2CLI_KILLS`` says how many.
    """
    rows = many(tmp_path / "in.jsonl", 120 * max(10, KILLS), max_tokens=24)
    flags = ("batch", "-m", model, rows, "--seed", "5", "--threads", "1")
    out, chance, kills = tmp_path / "out.jsonl", random.Random(7), 0
    for _ in range(50 * KILLS):
        process = start(*flags, "-o", out, "--slots", "4")
        time.sleep(chance.uniform(0.2, 1.4))
        over = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += process.returncode != 0
        if over or kills == KILLS:
            break
    assert kills == KILLS, "the job was too short"
    to_its_end(*flags, "-o", out)
    to_its_end(*flags, "-o", tmp_path / "whole.jsonl")
    assert answers(out) == answers(tmp_path / "whole.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(model: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """What has finished is written, and a line says how to go on."""
    rows, out = many(tmp_path / "in.jsonl", 400, max_tokens=30), tmp_path / "out.jsonl"
    process = start("batch", "-m", model, rows, "-o", out, "--slots", "2", "--threads", "1", "--seed", "5")
    end = time.monotonic() + 30
    while (not out.exists() or not out.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    count = len(out.read_bytes().splitlines())
    assert f"interrupted: {count:,} of 400 rows are done; the same command goes on" in err.decode()
    assert out.read_bytes().endswith(b"\n") and 0 < count < 400 and b"Traceback" not in err


def workers_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """The processes of a run's own Ray workers."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = (int(status[1]), (folder / "cmdline").read_bytes())
            except OSError:
                continue
    for pid, (parent, command) in parents.items():
        while parent in parents and parent != process.pid:
            parent = parents[parent][0]
        if parent == process.pid and b"ray::RowWorker" in command:
            yield pid


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'gpt2cli[ray]'")
def test_ray_with_a_worker_that_dies(model: Path, tmp_path: Path) -> None:
    """Two workers, one killed in the middle: the output is that of one process."""
    rows = many(tmp_path / "in.jsonl", 600, max_tokens=30)
    flags = ("batch", "-m", model, rows, "--seed", "5", "--threads", "1", "--slots", "4")
    out = tmp_path / "out.jsonl"
    process = start(*flags, "-o", out, "--ray", "local", "--workers", "2")
    end = time.monotonic() + 90
    while (not out.exists() or not out.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    pids = list(workers_of(process))
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"a worker has died" in err
    to_its_end(*flags, "-o", tmp_path / "whole.jsonl")
    assert answers(out) == answers(tmp_path / "whole.jsonl")
