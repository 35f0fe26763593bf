"""The contract of `compare`, in process."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from cli import Outcome, call
from hypothesis import given
from hypothesis import strategies as st
from support import make_model
from test_cli_fuzz import check, thorough

SHORT = ("--max-new-tokens", "8", "--ignore-eos")
FORMATS = ("json", "jsonl", "csv", "svg", "html")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    home = tmp_path_factory.mktemp("pair")
    return tuple(str(make_model(home / name, seed=n, std=0.15)) for n, name in enumerate("ab"))  # type: ignore[return-value]


def compare(*arguments: str, **keywords: str | bytes) -> Outcome:
    return call("compare", *SHORT, *arguments, **keywords)  # type: ignore[arg-type]


def models(pair: tuple[str, str]) -> tuple[str, ...]:
    return ("-m", pair[0], "-m", pair[1])


def test_the_whole_product(pair: tuple[str, str]) -> None:
    """2 models x 2 prompts x 2 x 2 settings x 2 seeds, each what `generate` gives."""
    flags = ("-p", "ab", "-p", "c d", "--temperature", "0.7", "--temperature", "1.5", "--top-k", "5")
    flags += ("--top-k", "0", "--seed", "3", "--seed", "9")
    document = compare("--json", *models(pair), *flags).document
    runs = document["runs"]
    assert len(runs) == 32 == document["runs_made"]
    keys = {
        (r["model"], r["prompt"], r["seed"], r["options"]["temperature"], r["options"]["top_k"]) for r in runs
    }
    assert len(keys) == 32
    for run in runs[::7]:
        options = (
            "--temperature",
            str(run["options"]["temperature"]),
            "--top-k",
            str(run["options"]["top_k"]),
        )
        prompt = document["prompts"][run["prompt"]]
        alone = call(
            "generate",
            "-m",
            run["model"],
            *SHORT,
            *options,
            "--seed",
            str(run["seed"]),
            "--json",
            "-p",
            prompt,
        ).document
        assert run["text"] == alone["choices"][0]["text"]
        assert run["token_ids"] == alone["choices"][0]["token_ids"]


def test_held_against_the_first_model(pair: tuple[str, str]) -> None:
    runs = compare("--json", *models(pair), "--seed", "1", "--seed", "2", "ab").document["runs"]
    first, second = runs[:2], runs[2:]
    assert [run["reference"] for run in runs] == [None, None, 0, 1]
    for one, other in zip(first, second, strict=True):
        at, tokens = other["parts"]["characters"], other["parts"]["tokens"]
        assert one["text"][:at] == other["text"][:at]
        assert one["token_ids"][:tokens] == other["token_ids"][:tokens]
        assert one["token_ids"][tokens] != other["token_ids"][tokens]
        assert [o["model"] for o in one["others"] + other["others"]] == [pair[1], pair[0]]
        assert all(o["same_tokens"] for o in one["others"])


def test_a_model_agrees_with_itself(pair: tuple[str, str], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(pair[0])
    runs = compare("--json", "-m", pair[0], "-m", str(twin), "--seed", "1", "ab").document["runs"]
    assert runs[1]["parts"] == {"characters": len(runs[0]["text"]), "tokens": 8, "identical": True}
    assert runs[0]["others"][0]["logprob"] == pytest.approx(runs[0]["logprob"], abs=1e-4)


def test_events_are_the_document(pair: tuple[str, str]) -> None:
    flags = (*models(pair), "--seed", "5", "--vary", "the {a|b}", "--next", "3")
    events = compare("--jsonl", *flags).events
    document = compare("--json", *flags).document
    assert [e.pop("event") for e in events] == ["start", *["run"] * 4, *["words"] * 2, "summary"]
    assert events[1:5] == document["runs"]
    assert events[5:7] == document["words"]
    assert document["note"] == events[-1]["note"] and "cannot show" in document["note"]
    assert document["templates"] == [{"template": "the {a|b}", "prompts": [0, 1], "labels": ["a", "b"]}]


def test_variants_side_by_side_on_the_built_in_model() -> None:
    """The demonstration of the model cards, as a person sees it and as a table."""
    flags = ("--vary", "The {king|queen} was very", "--seed", "1", "--next", "4")
    out = compare(*flags).out
    lines = out.splitlines()
    assert lines[0] == "The {king|queen} was very · likeliest next words by tiny"
    assert lines[1].split() == ["king", "queen"]
    assert re.match(r"happy +\d+\.\d%", lines[2])
    assert "What it cannot show" in out
    assert all(len(line) <= 80 for line in lines)
    rows = list(csv.DictReader(io.StringIO(compare("--csv", *flags).out, newline="")))
    words = [row for row in rows if row["kind"] == "word"]
    assert {row["prompt"] for row in words} == {"The king was very", "The queen was very"}
    assert all(0 < float(row["probability"]) < 1 for row in words)
    again = compare("--json", *flags[:4], "--words", "happy, sad", "--seed", "2").document["words"][0]
    shown = {row["text"]: float(row["probability"]) for row in words if "king" in row["prompt"]}
    assert [w["word"] for w in again["words"]] == ["happy", "sad"]
    assert again["words"][0]["probabilities"][0] == pytest.approx(shown[" happy"], rel=1e-4)


def test_formats_and_files(pair: tuple[str, str], tmp_path: Path) -> None:
    flags = (*models(pair), "--seed", "5", "--vary", "the {a|b}")
    for name in FORMATS:
        path = tmp_path / f"out.{name}"
        assert compare(*flags, "-o", str(path)).code == 0
        assert path.read_bytes().decode() == compare(*flags, f"--{name}").out
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", path.read_bytes().decode())
    json.loads((tmp_path / "out.json").read_text())
    ET.fromstring((tmp_path / "out.svg").read_text())


def test_narrow_and_wide(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each other, or one below the other; never wider than the terminal."""
    for columns in (20, 49, 80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = compare(*models(pair), "--seed", "1", "ab cd", tty="out", TERM="dumb").out
        assert "\x1b" not in out
        assert all(len(line) <= columns for line in out.splitlines())


def test_several_settings_and_seeds_of_one_model(pair: tuple[str, str]) -> None:
    out = compare("-m", pair[0], "--temperature", "0", "--temperature", "1", "--seed", "1", "ab").out
    assert "temperature 0 " in out and "temperature 1" in out and "parts after" in out
    greedy = compare("--json", "-m", pair[0], "--greedy", "--seed", "1", "--seed", "2", "ab").document
    assert [run["seed"] for run in greedy["runs"]] == [None]


def test_a_seed_is_drawn_and_reported(pair: tuple[str, str]) -> None:
    outcome = compare("-m", pair[0], "ab")
    seed = re.search(r"seed (\d+)", outcome.err)
    assert seed
    assert compare("-m", pair[0], "--seed", seed[1], "ab").out == outcome.out


def test_prompts_from_lines(pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"one\r\ntwo\n\n three \n")
    flags = ("-m", pair[0], "--seed", "1", "--json")
    prompts = compare(*flags, "--lines", "-f", str(file)).document["prompts"]
    assert prompts == ["one", "two", " three "]
    assert compare(*flags, "--lines", stdin=b"a\nb").document["prompts"] == ["a", "b"]
    assert compare(*flags, "-p", "x", "-", stdin=b"a\nb").document["prompts"] == ["x", "a\nb"]
    assert compare(*flags, "-p", "x", "y", "z").document["prompts"] == ["x", "y z"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--vary", "plain"), 2, "nothing to vary"),
        (("--vary", "{a|b"), 2, "has no }"),
        (("--vary", "{a|b}" * 9), 2, "at most 256"),
        (("--words", ",", "x"), 2, "--words"),
        (("--words", "a", "--next", "3", "x"), 2, "--next"),
        (("--next", "101", "x"), 2, "--next"),
        (("--lines", "x"), 2, "--lines"),
        (("--temperature", "0.5", "--temperature", "-1", "x"), 2, "--temperature"),
        (("--top-p", "nan", "x"), 2, "--top-p"),
        (("--seed", "1", "--seed", "4294967296", "x"), 2, "--seed"),
        (("--greedy", "--temperature", "1", "x"), 2, "--greedy"),
        (("--max-new-tokens", "0", "x"), 2, "--max-new-tokens"),
        (("--stop", "", "x"), 2, "--stop"),
        (("--json", "--svg", "x"), 2, "do not go together"),
        (("-m", "/nonexistent", "x"), 3, "/nonexistent"),
        (("y" * 100,), 6, "context"),
        (("-f", "/nonexistent"), 2, "/nonexistent"),
    ],
)
def test_wrong_usage(tiny_model: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    outcome = compare("-m", str(tiny_model), *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ") and says in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))


def test_too_many_texts_are_refused_before_anything_runs(tiny_model: Path) -> None:
    seeds = [part for seed in range(101) for part in ("--seed", str(seed))]
    outcome = compare("-m", str(tiny_model), *seeds, "--lines", stdin=b"x\n" * 100)
    assert outcome.code == 2 and "10100 texts" in outcome.err


texts = st.text(st.characters(exclude_characters="\x00"), max_size=20)
odd = st.sampled_from(["0", "1", "-1", "2", "x", "nan", "", "{a|b}", "a{,|b}c"])
flags = st.one_of(
    st.tuples(
        st.sampled_from(["--temperature", "--top-k", "--seed", "--next", "--words", "--vary", "-p"]), odd
    ),
    st.tuples(
        st.sampled_from(["--csv", "--svg", "--html", "--json", "--jsonl", "--greedy", "-q", "--lines"])
    ),
    st.tuples(st.just("--vary"), texts),
)


@pytest.mark.slow
@thorough(40)
@given(given_flags=st.lists(flags, max_size=5), text=texts)
def test_any_command_line(tiny_model: Path, given_flags: list[tuple[str, ...]], text: str) -> None:
    arguments = [part for flag in given_flags for part in flag]
    check(call("compare", "-m", tiny_model, "--max-new-tokens", "3", *arguments, "--", text))


def test_special_tokens_are_read_by_all(tmp_path: Path) -> None:
    """The judges and the next words once read ``<|endoftext|>`` as text where the writer read the token."""
    twins = [str(make_model(tmp_path / name, std=0.15)) for name in "ab"]
    flags = ("--special-tokens", "--next", "3", "--seed", "1")
    document = compare("--json", *models((twins[0], twins[1])), *flags, "-p", "<|endoftext|>ab").document
    for run in document["runs"]:
        (opinion,) = run["others"]
        assert opinion["logprob"] == pytest.approx(run["logprob"], abs=1e-3)
    words = [
        compare("--json", "-m", twins[0], *flags, "-p", prompt).document["words"][0]
        for prompt in ("<|endoftext|>", "")
    ]
    assert words[0]["words"] == words[1]["words"]


@pytest.mark.parametrize("length", [70, 7000])
def test_a_prompt_that_does_not_fit(pair: tuple[str, str], length: int) -> None:
    """The hint named --overflow, which compare has not."""
    outcome = compare("-m", pair[0], "-p", "x" * length)
    assert outcome.code == 6 and outcome.err.endswith("hint: shorten the prompt\n"), outcome.err
