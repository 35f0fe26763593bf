"""The contract of `score`: what is read, what is put out, what is refused, going on after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli import call, shell
from support import make_model, shared

from gpt2cli import paths

TEXT = "Once upon a time there was a little girl."


def test_figures_of_a_text() -> None:
    outcome = call("score", TEXT)
    assert outcome.code == 0 and outcome.err == ""
    figures = {line[:20].strip(): float(line[20:35]) for line in outcome.out.splitlines()}
    document = call("score", "--json", TEXT).document
    total = document["total"]
    assert figures["perplexity"] == pytest.approx(total["perplexity"], abs=1e-3)
    assert total["perplexity"] == pytest.approx(math.exp(total["nll"] / total["tokens"]))
    assert total["perplexity_per_word"] == pytest.approx(math.exp(total["nll"] / 8))
    assert total["bits_per_byte"] == pytest.approx(total["nll"] / math.log(2) / (len(TEXT) - len("Once")))
    assert total["unscored_tokens"] == 1 and document["model"] == "tiny"


@pytest.mark.slow
def test_sources_are_one(tmp_path: Path) -> None:
    """Words, a flag, a file, stdin and a dash read the same text."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    wanted = call("score", TEXT).out
    for arguments in ((*TEXT.split(),), ("-p", TEXT), ("-f", file)):
        assert call("score", *arguments).out == wanted
    for arguments in ((), ("-",), ("-f", "-")):
        assert call("score", *arguments, stdin=TEXT.encode()).out == wanted
    assert call("score", "Once upon", "-", stdin=TEXT.removeprefix("Once upon ").encode()).out == wanted


def test_a_file_is_scored_as_it_is(tmp_path: Path) -> None:
    """Its final newline was dropped; now only --drop-newline and --choices do that."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT + "\n")
    wanted = call("score", "--json", "-p", TEXT + "\n").document["total"]
    assert wanted["bytes"] == len(TEXT) + 1 - len("Once")
    for flags in (("-f", file), ("-f", "-"), (), ("--keep-newline",)):
        found = call("score", "--json", *flags, stdin=file.read_bytes()).document["total"]
        assert found == wanted, flags
    dropped = call("score", "--json", "--drop-newline", "-f", file).document["total"]
    assert dropped == call("score", "--json", TEXT).document["total"]
    choices = ("--choice", " The", "--choice", " A", "--json")
    before = call("score", *choices, TEXT).document["texts"]
    assert call("score", *choices, "-f", file).document["texts"] == before
    kept = call("score", *choices, "--keep-newline", "-f", file).document["texts"]
    assert kept == call("score", *choices, "-p", TEXT + "\n").document["texts"] != before


def test_tokens() -> None:
    document = call("score", "--json", "--tokens", "--top", "3", TEXT).document
    (text,) = document["texts"]
    scores = text["token_scores"]
    assert "".join(s["token"] for s in scores) == TEXT.removeprefix("Once")
    assert math.fsum(s["logprob"] for s in scores) == pytest.approx(-text["nll"])
    assert [s["place"] for s in scores] == list(range(1, len(scores) + 1))
    for s in scores:
        assert len(s["top"]) == 3 and s["probability"] == pytest.approx(math.exp(s["logprob"]))
        assert (s["rank"] == 1) == (s["top"][0]["token_id"] == s["token_id"])
    events = call("score", "--jsonl", "--tokens", "--top", "3", TEXT).events
    assert [{k: v for k, v in e.items() if k not in ("event", "index")} for e in events[:-1]] == scores
    assert events[-1]["event"] == "summary" and events[-1]["total"] == document["total"]
    rows = call("score", "--tokens", "--top", "3", TEXT).out.splitlines()
    assert [row.split("\t")[5] for row in rows] == [repr(s["token"]) for s in scores]
    shown = call("score", "--tokens", "--top", "3", TEXT, tty="out").out
    assert "probability" in shown.splitlines()[0] and "\x1b" not in shown


def test_lines_keep_their_places() -> None:
    """An empty line is a text without scores."""
    lines = [TEXT, "", "x", "The dog ran."]
    document = call("score", "--lines", "--json", stdin="\n".join(lines).encode()).document
    assert [t["text"] for t in document["texts"]] == lines
    assert [t["perplexity"] is None for t in document["texts"]] == [False, True, True, False]
    for line, found in zip(lines, document["texts"], strict=True):
        if found["tokens"]:
            alone = call("score", "--json", line).document["total"]
            assert found["nll"] == pytest.approx(alone["nll"], rel=1e-5)
    assert document["total"]["nll"] == pytest.approx(math.fsum(t["nll"] for t in document["texts"]))
    rows = call("score", "--lines", stdin="\n".join(lines).encode()).out.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["1", "2", "3", "4"]


def test_jsonl_in_and_out_keeps_ids(tmp_path: Path) -> None:
    records = [
        {"id": "a", "text": TEXT},
        {"id": 7, "text": "b c", "more": [1]},
        {"id": {"x": [1, None]}, "text": "d e"},
        {"text": "f g"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(json.dumps(r) for r in records) + "\n")
    for arguments in (("-f", file), ("--from-jsonl", "-")):
        events = call("score", "--jsonl", *arguments, stdin=file.read_bytes()).events
        texts = [e for e in events if e["event"] == "text"]
        assert [e.get("id") for e in texts] == ["a", 7, {"x": [1, None]}, None]
        assert [e["text"] for e in texts] == [r["text"] for r in records]
        assert events[-1]["total"]["texts"] == 4
    moved = tmp_path / "moved.jsonl"
    moved.write_text(json.dumps({"id": 1, "body": TEXT}))
    assert call("score", "--jsonl", "--field", "body", "-f", moved).events[0]["id"] == 1


def test_bos_and_eos(tiny_model: Path) -> None:
    plain = call("score", "-m", tiny_model, "--json", "ab").document["total"]
    both = call("score", "-m", tiny_model, "--json", "--bos", "--eos", "ab").document["total"]
    assert (plain["tokens"], both["tokens"]) == (1, 3)
    assert (both["bytes"], both["words"], both["unscored_tokens"]) == (2, 1, 1)


def test_makemore_by_the_command(tmp_path: Path) -> None:
    """The names with a nll of their own in expected.json."""
    model = shared("models", "makemore_names_lmj9", "hf")
    expected = json.loads(shared("models", "makemore_names_lmj9", "expected.json").read_text())
    names = "\n".join(expected["per_name_nll"])
    flags = ("--lines", "--bos", "--eos", "--window", "17", "--json")
    document = call("score", "-m", model, *flags, stdin=names.encode()).document
    for found, nll in zip(document["texts"], expected["per_name_nll"].values(), strict=True):
        assert found["nll"] == pytest.approx(nll, abs=1e-4)


@pytest.mark.slow
def test_makemore_all_names() -> None:
    model = shared("models", "makemore_names_lmj9", "hf")
    expected = json.loads(shared("models", "makemore_names_lmj9", "expected.json").read_text())
    names = shared("models", "makemore_names_lmj9", "source", "names.txt")
    flags = ("--lines", "--bos", "--eos", "--window", "17", "--jsonl")
    total = call("score", "-m", model, *flags, "-f", names).events[-1]["total"]
    assert total["tokens"] == expected["n_target_tokens"] and total["texts"] == expected["n_names"]
    assert total["nll"] == pytest.approx(expected["sum_nll"], rel=1e-6)
    assert total["mean_nll"] == pytest.approx(expected["mean_nll_per_token_over_all_names"], abs=1e-6)


def test_slm_by_the_command() -> None:
    model, expected = (shared("models", "slm_4096_kunal", name) for name in ("hf", "expected.json"))
    wanted = json.loads(expected.read_text())
    text = shared("models", "slm_4096_kunal", "source", "corpus.txt")
    flags = ("--window", "129", "--stride", "128", "--json")
    total = call("score", "-m", model, *flags, "-f", text).document["total"]
    assert total["tokens"] == wanted["n_targets"]
    assert total["mean_nll"] == pytest.approx(wanted["mean_nll_disjoint_windows_128"], abs=1e-6)
    # The choices of all characters are all that can come.
    vocab = json.loads((model / "vocab.json").read_text())
    letters = ["\n" if c == "Ċ" else " " if c == "Ġ" else c for c in vocab]
    arguments = [flag for letter in letters for flag in ("--choice", letter)]
    choices = call("score", "-m", model, "--json", *arguments, "Q: What is SLM?\nA").document
    found = choices["texts"][0]["choices"]
    assert len(found) == len(vocab)
    assert math.fsum(c["probability"] for c in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_choices() -> None:
    arguments = (
        "--choices",
        " girl, boy",
        "--choice",
        " dog, a small one",
        "Once upon a time there was a little",
    )
    document = call("score", "--json", *arguments).document
    found = document["texts"][0]["choices"]
    assert {c["choice"] for c in found} == {" girl", " boy", " dog, a small one"}
    assert math.fsum(c["share"] for c in found) == pytest.approx(1)
    rows = [line.split("\t") for line in call("score", *arguments).out.splitlines()]
    assert [row[4] for row in rows] == [repr(c["choice"]) for c in found]
    per_token = call("score", "--json", "--normalize", "tokens", *arguments).document["texts"][0]["choices"]
    for c in per_token:
        assert c["score"] == pytest.approx(c["logprob"] / len(c["token_ids"]))
    several = call("score", "--lines", "--jsonl", *arguments[:-1], stdin=b"a\nOnce upon a time").events
    assert [e["index"] for e in several[:-1]] == [0, 1]


def test_tasks(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    texts = ["Once upon a time", "The sun was in the sky", "She was very happy"]
    file.write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)))
    document = call("score", "--task", "lambada", "--json", file).document
    assert document["result"]["passages"] == 3 and [i["id"] for i in document["items"]] == [0, 1, 2]
    right = [i["correct"] for i in document["items"]]
    assert document["result"]["accuracy"] == pytest.approx(sum(right) / 3) and right[0]
    plain = call("score", "--task", "lambada", "--json", "-", stdin="\n".join(texts).encode()).document
    assert plain["result"] == document["result"]
    assert (
        call("score", "--task", "lambada", "--limit", "1", "--json", file).document["result"]["passages"] == 1
    )
    gap = {"id": "g", "text": "Once upon a ___ there was", "choices": ["boat", "time"], "answer": "time"}
    file.write_text(json.dumps(gap))
    events = call("score", "--task", "cloze", "--jsonl", "-f", file).events
    assert events[0]["choice"] == "time" and events[0]["id"] == "g" and events[0]["correct"]
    assert events[1]["result"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (("x",), b"", 2),
        (("--json", "--jsonl", "a b"), b"", 2),
        (("--stride", "0", "a b"), b"", 2),
        (("--window", "514", "a b"), b"", 2),
        (("--stride", "513", "a b"), b"", 2),
        (("--choices", "a,,b", "c"), b"", 2),
        (("--choices", "a", "--task", "lambada"), b"", 2),
        (("--choices", "a", "--tokens", "c"), b"", 2),
        (("--normalize", "bytes", "c"), b"", 2),
        (("--task", "cloze"), b"a", 2),
        (("--task", "lambada"), b"oneword", 2),
        (("--task", "lambada"), b"", 2),
        (("--from-jsonl",), b"{", 2),
        (("--from-jsonl",), b"[]", 2),
        (("--from-jsonl",), b'{"x": 1}', 2),
        (("--from-jsonl",), b'{"text": 1}', 2),
        (("--field", "x", "a b"), b"", 2),
        (("--strict",), b"a \xff b", 2),
        (("-f", "/nowhere/x"), b"", 2),
        (("-f", "/"), b"", 2),
        (("-o", "/nowhere/x", "a b"), b"", 2),
        (("--plot", "x.pdf", "a b"), b"", 2),
        (("--plot", "/nowhere/x.svg", "a b"), b"", 2),
        (("--top", "-1", "a b"), b"", 2),
        (("--batch-tokens", "0", "a b"), b"", 2),
        (("-m", "/nowhere", "a b"), b"", 3),
        (("--choices", " c", "a " * 700), b"", 6),
    ],
)
def test_refused_in_one_line(arguments: tuple[str, ...], stdin: bytes, code: int) -> None:
    outcome = call("score", *arguments, stdin=stdin)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2
    assert "defect" not in outcome.err


def test_bad_bytes_are_replaced_with_a_warning() -> None:
    outcome = call("score", stdin=b"a \xff b \0 c")
    assert outcome.code == 0 and "2 bytes that are NUL or no UTF-8; replaced" in outcome.err


def test_a_pipe_gets_no_escape_codes(tmp_path: Path) -> None:
    for tty in ("", "out", "err", "out err"):
        outcome = call("score", "--tokens", "a \x1b[31m b", tty=tty, NO_COLOR="1")
        assert "\x1b" not in outcome.out + outcome.err
    outcome = call("score", "--lines", stdin=b"a \x1b[31m b\n", tty="out")
    assert "\x1b" not in outcome.out


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = b'{"text": "a b"}\n' * 3
    assert call("score", "--from-jsonl", "--jsonl", "-o", out, stdin=lines).out == ""
    assert len(out.read_text().splitlines()) == 4
    before = out.read_text()
    assert call("score", "--from-jsonl", "--jsonl", "-o", out, stdin=lines + b"{").code == 2
    assert out.read_text() == before and os.listdir(tmp_path) == ["out.jsonl"]
    assert call("score", "-o", "/dev/null", "a b c").code == 0


@pytest.mark.slow
def test_plot(tmp_path: Path) -> None:
    for name in ("p.svg", "p.png"):
        assert call("score", "--plot", tmp_path / name, TEXT).code == 0
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.slow
def test_reader_that_goes_away() -> None:
    outcome = shell("yes 'a b c' | head -3000 | $G score --lines | head -1; echo ${PIPESTATUS[2]}")
    assert outcome.out.splitlines()[-1] in ("141", "0")
    assert "Traceback" not in outcome.err


FALL = """
import os, signal, sys
from gpt2cli.jobs import standing
from gpt2cli.cli.app import main

standing.FIRST_AFTER_S = standing.SAVE_EVERY_S = 0.0
save, calls = standing.Standing.save, [0]

def falling(self, state, *, now=False):
    calls[0] += 1
    if calls[0] == 3:
        # What came since the second state is lost.
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    save(self, state, now=now)

standing.Standing.save = falling
sys.exit(main(sys.argv[2:]))
"""
"""The command, sent a signal in the middle: after two states were kept and a third part was put out."""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The arguments that score a file of some groups of batches."""
    folder = tmp_path_factory.mktemp("long")
    model = make_model(folder / "m", n_positions=128, std=0.05)
    words = ["lorem", "ipsum", "dolor,", "sit", "amet\n", "überall", "漢字", "it's"]
    (folder / "long.txt").write_text(" ".join(words[(n * n + n // 7) % 8] for n in range(4_000)))
    arguments = ("-m", model, "-f", folder / "long.txt", "--stride", "64", "--batch-tokens", "512")
    return ("score", *map(os.fspath, arguments))


def fall(name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", FALL, name, *arguments], capture_output=True, timeout=120, check=False
    )


def states(beside: Path | None = None) -> list[Path]:
    """Where runs stand: beside their rows, or in the cache."""
    folders = [paths.cache_dir() / "score", *([beside] if beside is not None else [])]
    return [path for folder in folders for path in folder.glob("*.manifest.json")]


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.slow), "tokens", "lines"])
def test_killed_and_resumed(long: tuple[str, ...], tmp_path: Path, kind: str) -> None:
    """kill -9 in the middle: the next run goes on, and ends with the same bytes."""
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    flags = {"text": (), "tokens": ("--tokens", "--top", "2"), "lines": ("--lines",)}[kind]
    arguments = (*long, "--jsonl", *flags)
    killed = fall("SIGKILL", *arguments, "-o", str(out))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists() and len(states(tmp_path)) == 1
    done = json.loads(states(tmp_path)[0].read_text())["state"]["totals"]["tokens"]
    resumed = call(*arguments, "-o", out)
    assert resumed.code == 0 and f"going on after {done:,} tokens" in resumed.err and done > 1000
    assert states() == [] and sorted(os.listdir(tmp_path)) == ["out.jsonl"]
    assert call(*arguments, "-o", whole, "--no-resume").code == 0
    ours, theirs = (path.read_text().splitlines() for path in (out, whole))
    assert ours[:-1] == theirs[:-1] and (kind == "text" or len(ours) > 500)
    last, wanted = json.loads(ours[-1]), json.loads(theirs[-1])
    assert last["resumed"] and not wanted["resumed"]
    assert last["total"] == wanted["total"]


@pytest.mark.slow
def test_interrupted_and_resumed(long: tuple[str, ...], tmp_path: Path) -> None:
    """SIGINT keeps the state too, and exits 130; the plot goes on as well."""
    plots = [tmp_path / name for name in ("ours.svg", "theirs.svg")]
    arguments = (*long, "--json")
    interrupted = fall("SIGINT", *arguments)
    assert interrupted.returncode == 130 and interrupted.stdout == b""
    assert b"Traceback" not in interrupted.stderr
    # Another stride, or a plot, is another job.
    assert not call(*arguments, "--stride", "100").document["resumed"]
    assert call(*arguments).document["resumed"] and states() == []
    assert fall("SIGTERM", *arguments, "--plot", str(plots[0])).returncode == 143
    resumed = call(*arguments, "--plot", plots[0]).document
    assert resumed["resumed"]
    assert call(*arguments, "--plot", plots[1]).document["total"] == resumed["total"]
    assert plots[0].read_bytes() == plots[1].read_bytes()


@pytest.mark.slow
def test_interrupted_while_rows_are_written(long: tuple[str, ...], tmp_path: Path) -> None:
    """What is kept on the way out needs the file of rows, which must not be closed by then."""
    arguments = (*long, "--jsonl", "--tokens", "-o", str(tmp_path / "out.jsonl"))
    interrupted = fall("SIGINT", *arguments)
    assert interrupted.returncode == 130 and b"error" not in interrupted.stderr
    assert call(*arguments).code == 0 and os.listdir(tmp_path) == ["out.jsonl"]
    events = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert events[-1]["resumed"] and events[-1]["total"]["tokens"] == len(events) - 1


@pytest.mark.slow
def test_a_changed_file_begins_anew(long: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "changed.txt"
    file.write_bytes(Path(long[4]).read_bytes())
    arguments = (*long[:4], str(file), *long[5:], "--json")
    assert fall("SIGKILL", *arguments).returncode == -signal.SIGKILL
    file.write_bytes(Path(long[4]).read_bytes() + b" more")
    assert not call(*arguments).document["resumed"]


def test_a_special_token_is_no_bytes_wherever_they_are_counted() -> None:
    """``inspect`` and ``score`` give the same bits per byte."""
    text = ("--special-tokens", "--json", "a<|endoftext|>b")
    scored, seen = call("score", *text).document, call("inspect", *text).document
    assert scored["total"]["bits_per_byte"] == pytest.approx(seen["summary"]["bits_per_byte"], rel=1e-4)


def test_a_line_without_two_words_is_named() -> None:
    outcome = call("score", "--task", "lambada", "-", stdin=b"two words\none\n")
    assert outcome.code == 2 and outcome.err.startswith("error: line 2: no last word")


def test_a_file_stands_before_stdin(tmp_path: Path) -> None:
    """`score -f FILE -` once read stdin alone, and said nothing of the file."""
    file = tmp_path / "before.txt"
    file.write_text("Once upon a time")
    whole = call("score", "--json", "Once upon a time there was").document["total"]
    both = call("score", "--json", "-f", file, "-", stdin=b"there was").document
    assert both["total"] == whole and both["source"] == f"{file} and standard input"
    file.write_text("Once upon a time ")
    assert call("score", "--json", "-f", file, "-", stdin=b"there was").document["total"] == whole
    lines = call("score", "--lines", "--json", "-f", file, "-", stdin=b"\xef\xbb\xbfthere\nwas\n").document
    assert [text["text"] for text in lines["texts"]] == ["Once upon a time ", "there", "was"]
    twice = call("score", "Once", "-f", file, "-", stdin=b"x")
    assert twice.code == 2 and "twice" in twice.err


def test_a_passage_that_exactly_fills_the_context(tiny_model: Path, tmp_path: Path) -> None:
    """With --bos it was one token too long, and one such passage lost the whole run."""
    file = tmp_path / "passages.txt"
    passages = ["x" * (65 - 4 - more) + " abc" for more in (2, 1, 0, -1)]
    file.write_text("\n".join(passages))
    flags = ("--task", "lambada", "--json", "-m", tiny_model, file)
    plain, with_bos = call("score", *flags).document, call("score", "--bos", *flags).document
    assert plain["result"]["passages"] == with_bos["result"]["passages"] == 4
    assert plain["result"]["truncated_passages"] == with_bos["result"]["truncated_passages"] == 1
    logprobs = [[item["logprob"] for item in document["items"]] for document in (plain, with_bos)]
    same = [a == pytest.approx(b, abs=1e-6) for a, b in zip(*logprobs, strict=True)]
    assert same == [False, False, True, True], "bos goes first where there is no room"


def test_bos_before_a_cloze(tiny_model: Path, tmp_path: Path) -> None:
    """--bos was passed over."""
    record = {"text": "a ___ c", "choices": ["b", "d"]}
    flags = ("--task", "cloze", "--from-jsonl", "--json", "-m", tiny_model)
    found = [
        call("score", *flags, *bos, stdin=json.dumps(record).encode()).document["items"][0]["logprobs"]
        for bos in ((), ("--bos",))
    ]
    assert found[0] != pytest.approx(found[1])


@pytest.mark.parametrize("flags", [(), ("--tokens",), ("--choices", " a, b")], ids=str)
def test_the_suffix_decides(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """`score -o x.json` wrote text, where `inspect` wrote JSON; a flag comes before the suffix."""
    for name in ("x.json", "x.JSONL", "x.txt"):
        assert call("score", *flags, "-o", tmp_path / name, TEXT).code == 0
    assert json.loads((tmp_path / "x.json").read_text())["model"] == "tiny"
    lines = [json.loads(line) for line in (tmp_path / "x.JSONL").read_text().splitlines()]
    assert lines[-1]["event"] == "summary"
    assert not (tmp_path / "x.txt").read_text().startswith("{")
    assert call("score", *flags, "--jsonl", "-o", tmp_path / "y.json", TEXT).code == 0
    assert json.loads((tmp_path / "y.json").read_text().splitlines()[-1])["event"] == "summary"


def test_how_many_tokens_were_scored() -> None:
    """It said "tokens 10, 1 not scored", which could mean nine."""
    total = call("score", "--json", TEXT).document["total"]
    tokens, unscored = total["tokens"], total["unscored_tokens"]
    line = next(line for line in call("score", TEXT).out.splitlines() if line.startswith("tokens"))
    assert line.split() == ["tokens", "scored", str(tokens), "of", str(tokens + unscored)]
