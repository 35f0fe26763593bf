"""The contract of `inspect`, in process."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from cli import Outcome, call
from hypothesis import given
from hypothesis import strategies as st
from support import make_model
from test_cli_fuzz import check, thorough

from gpt2cli.cli.inspect_report import percent

FORMATS = ("json", "jsonl", "csv", "svg", "html")


def inspect(model: Path | str, *arguments: str, **keywords: str | bytes) -> Outcome:
    return call("inspect", "-m", model, *arguments, **keywords)  # type: ignore[arg-type]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_format_has_the_same_figures(tiny_model: Path) -> None:
    arguments = ("--top", "2", "ab 🎉")
    document = inspect(tiny_model, "--json", *arguments).document
    tokens = document["tokens"]
    assert document["text"] == "ab 🎉"
    assert "".join(token["token"] for token in tokens[:3]) == "ab "
    assert bytes.fromhex("".join(token["bytes"] for token in tokens)).decode() == "ab 🎉"
    assert tokens[0]["logprob"] is None and tokens[0]["top_logprobs"] == []
    nll = -sum(token["logprob"] for token in tokens[1:])
    assert document["summary"]["nll"] == pytest.approx(nll)
    assert document["summary"]["perplexity"] == pytest.approx(math.exp(nll / 6))

    events = inspect(tiny_model, "--jsonl", *arguments).events
    assert [event.pop("event") for event in events] == ["start", *["token"] * 7, "summary"]
    assert events[1:-1] == tokens
    rows = rows_of(inspect(tiny_model, "--csv", *arguments).out)
    for row, token in zip(rows[1:], tokens[1:], strict=True):
        assert float(row["logprob"]) == pytest.approx(token["logprob"])
        assert float(row["probability"]) == pytest.approx(math.exp(token["logprob"]))
        assert (int(row["rank"]), int(row["token_id"])) == (token["rank"], token["token_id"])
        assert float(row["top_2_logprob"]) == pytest.approx(token["top_logprobs"][1]["logprob"])
    assert rows[0]["logprob"] == ""


def test_text_with_digits_in_a_pipe() -> None:
    """Each digit is the surprisal in bits, under the beginning of its token."""
    text = "Once upon a time there was a submarine"
    outcome = inspect("tiny", text)
    assert "\x1b" not in outcome.out
    lines = outcome.out.splitlines()
    assert lines[0] == text
    tokens = inspect("tiny", "--json", text).document["tokens"]
    bits = ["·", *(str(min(9, int(-token["logprob"] / math.log(2)))) for token in tokens[1:])]
    assert lines[1].replace(" ", "") == "".join(bits)
    places = [match.start() for match in re.finditer(r"\S", lines[1])]
    assert places[:5] == [0, 5, 10, 12, 17]
    assert "perplexity" in outcome.err
    assert inspect("tiny", "-q", text).err == ""


def test_a_terminal_has_colours_instead(tiny_model: Path) -> None:
    """Digits come back where there are no colours, too few of them, or when asked for."""
    plain = inspect(tiny_model, "some text")
    coloured = inspect(tiny_model, "some text", tty="out", TERM="xterm-256color")
    assert "\x1b[" in coloured.out
    assert len(coloured.out.splitlines()) == 2
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert inspect(tiny_model, "some text", tty="out", **environ).out == plain.out
    assert inspect(tiny_model, "some text", tty="out", TERM="xterm", COLORTERM="").out == plain.out
    marked = inspect(tiny_model, "--marks", "some text", tty="out", TERM="xterm-256color")
    assert "\x1b[" in marked.out and len(marked.out.splitlines()) == 3
    assert len(inspect(tiny_model, "--no-marks", "some text").out.splitlines()) == 2


def test_nothing_of_the_text_acts_on_a_terminal(tiny_model: Path) -> None:
    text = "a\x1b]0;title\x07\x9b2Jb\u202ec"
    for environ in ({"TERM": "xterm-256color"}, {"NO_COLOR": "1"}):
        out = inspect(tiny_model, "--top", "3", text, tty="out", **environ).out
        bare = re.sub(r"\x1b\[[0-9;]*m", "", out) if "TERM" in environ else out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", bare)
    for name in FORMATS:
        out = inspect(tiny_model, f"--{name}", "--top", "3", text).out
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", out), name


def test_the_suffix_of_the_file_decides(tiny_model: Path, tmp_path: Path) -> None:
    for name in FORMATS:
        path = tmp_path / f"out.{name.upper()}"
        outcome = inspect(tiny_model, "-o", str(path), "ab")
        assert (outcome.code, outcome.out) == (0, "")
        assert path.read_bytes().decode() == inspect(tiny_model, f"--{name}", "ab").out
    json.loads((tmp_path / "out.JSON").read_text())
    ET.fromstring((tmp_path / "out.SVG").read_text())
    assert (tmp_path / "out.HTML").read_text().startswith("<!DOCTYPE html>")
    inspect(tiny_model, "--csv", "-o", str(tmp_path / "x.html"), "ab")
    assert (tmp_path / "x.html").read_text().startswith("place,")


def test_measures_differ_and_the_svg_theme_too(tiny_model: Path) -> None:
    outs = {
        by: inspect(tiny_model, "--by", by, "some longer text").out
        for by in ("probability", "rank", "entropy")
    }
    assert len(set(outs.values())) == 3
    light, dark = (inspect(tiny_model, "--svg", "--theme", theme, "ab").out for theme in ("light", "dark"))
    assert light != dark and light == inspect(tiny_model, "--svg", "ab").out


def test_longer_than_the_context(tiny_model: Path) -> None:
    outcome = inspect(tiny_model, "x" * 80)
    assert outcome.code == 6 and "--stride" in outcome.err
    document = inspect(tiny_model, "--json", "--stride", "32", "x" * 80).document
    assert document["summary"]["scored"] == 79


def test_bos_predicts_the_first_token(tiny_model: Path) -> None:
    tokens = inspect(tiny_model, "--json", "--bos", "ab").document["tokens"]
    assert [token["token"] for token in tokens] == ["<|endoftext|>", "a", "b"]
    assert tokens[0]["logprob"] is None and tokens[1]["logprob"] < 0


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 79, 120])
def test_figures_are_whole_at_every_width(
    tiny_model: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number whose end is cut off is another number."""
    flags = ("--explain", "--top-k", "50", "--temperature", "1.25", "--repetition-penalty", "1.5", "ab")
    found = inspect(tiny_model, "--json", *flags).document
    monkeypatch.setenv("COLUMNS", str(columns))
    out = inspect(tiny_model, *flags).out
    assert all(len(line) <= columns for line in out.splitlines())
    assert {"1.25", "50", "1.5", str(found["effects"][-1]["removed"])} <= set(out.split())
    listed = inspect(tiny_model, "--top", "2", "ab").out
    probability = math.exp(inspect(tiny_model, "--json", "ab").document["tokens"][1]["logprob"])
    assert percent(probability) in listed
    assert all(len(line) <= columns for line in listed.splitlines())


def test_empty_text_is_the_bos(tiny_model: Path) -> None:
    document = inspect(tiny_model, "--json", "-p", "").document
    assert [token["token_id"] for token in document["tokens"]] == [256]
    assert document["summary"]["perplexity"] is None
    for name in FORMATS:
        assert inspect(tiny_model, f"--{name}", "-p", "").code == 0


def test_explain_is_about_the_step_asked_for(tiny_model: Path) -> None:
    """--at counts tokens from 1; from the end below 0; without it the next one."""
    flags = ("--explain", "--json", "--temperature", "0.7", "--top-k", "9", "--top-p", "0.8", "--seed", "4")

    def step(*more: str) -> dict[str, object]:
        found: dict[str, object] = inspect(tiny_model, *flags, *more, "abcd").document
        return found

    assert (step()["position"], step()["actual"]) == (4, None)
    last = step("--at", "4")
    assert (last["position"], last["text"]) == (3, "abc")
    assert last == step("--at", "-1")
    assert step("--at", "5") == step()
    assert step("--at", "2")["text"] == "a"
    effects = step()["effects"]
    assert isinstance(effects, list)
    assert [effect["option"] for effect in effects] == ["temperature", "top_k", "top_p"]
    assert effects[1]["left"] == 9
    drawn = call("generate", "-m", tiny_model, *flags[2:], "--json", "--max-new-tokens", "1", "abcd").document
    found = step()["drawn"]
    assert isinstance(found, dict)
    assert [found["token_id"]] == drawn["choices"][0]["token_ids"]


def test_explain_takes_the_models_and_the_settings_defaults(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", generation={"temperature": 0.5, "top_k": 3})
    found = inspect(model, "--explain", "--json", "ab", GPT2CLI_TOP_P="0.9").document
    assert [(e["option"], e["value"]) for e in found["effects"]] == [
        ("temperature", 0.5),
        ("top_k", 3),
        ("top_p", 0.9),
    ]


def test_explain_in_every_format(tiny_model: Path) -> None:
    flags = ("--explain", "--top-k", "5", "--seed", "1", "--at", "-1", "abc")
    for name in FORMATS:
        assert inspect(tiny_model, f"--{name}", *flags).code == 0
    out = inspect(tiny_model, *flags).out
    assert "removed by top-k" in out and "seed 1 draws" in out and "in the text stands" in out
    rows = rows_of(inspect(tiny_model, "--csv", *flags).out)
    assert sum(float(row["probability_after"]) for row in rows) == pytest.approx(1)
    assert all(len(line) <= 80 for line in out.splitlines())
    greedy = inspect(tiny_model, "--explain", "--greedy", "abc").out
    assert "greedy decoding takes" in greedy


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--json", "--csv", "x"), 2, "--json and --csv"),
        (("--theme", "dark", "x"), 2, "--theme"),
        (("--by", "size", "x"), 2, "size"),
        (("--top", "0", "x"), 2, "--top"),
        (("--top", "1001", "x"), 2, "1 to 1000"),
        (("--stride", "0", "x"), 2, "--stride"),
        (("--stride", "65", "x"), 2, "--stride"),
        (("--temperature", "0.5", "x"), 2, "--temperature needs --explain"),
        (("--seed", "1", "x"), 2, "--seed needs --explain"),
        (("--at", "1", "x"), 2, "--at needs --explain"),
        (("--explain", "--at", "1", "x"), 2, "--at"),
        (("--explain", "--at", "0", "x"), 2, "--at"),
        (("--explain", "--at", "3", "x"), 2, "--at"),
        (("--explain", "--at", "-1", "x"), 2, "--at"),
        (("--explain", "--marks", "x"), 2, "--marks"),
        (("--explain", "--by", "rank", "x"), 2, "--by"),
        (("--explain", "--stride", "5", "x"), 2, "--stride"),
        (("--explain", "--top-p", "2", "x"), 2, "--top-p"),
        (("--explain", "--seed", "-1", "x"), 2, "--seed"),
        (("--explain", "--greedy", "--temperature", "1", "x"), 2, "--greedy"),
        (("--explain", "x" * 64), 6, "no room"),
        (("-o", "/nonexistent/x.svg", "x"), 2, "/nonexistent"),
        (("-p", "a", "b"), 2, "twice"),
        (("-m", "/nonexistent", "x"), 3, "/nonexistent"),
        (("--device", "cuda", "x"), 2, "cuda"),
    ],
)
def test_wrong_usage(tiny_model: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    outcome = inspect(tiny_model, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ") and says in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))


def test_models_that_cannot_be_inspected(tmp_path: Path) -> None:
    assert inspect(make_model(tmp_path / "ids", tokenizer=None), "x").code == 5
    assert inspect(make_model(tmp_path / "m", bos_token_id=None, eos_token_id=None), "-p", "").code == 2


texts = st.text(st.characters(exclude_characters="\x00"), max_size=30)
odd = st.sampled_from(["0", "1", "-1", "2", "x", "nan", "1e9", ""])
flags = st.one_of(
    st.tuples(st.sampled_from(["--top", "--at", "--stride", "--top-k", "--top-p", "--seed", "--by"]), odd),
    st.tuples(
        st.sampled_from(["--explain", "--csv", "--svg", "--html", "--json", "--marks", "-q", "--greedy"])
    ),
)


@pytest.mark.slow
@thorough(60)
@given(given_flags=st.lists(flags, max_size=4), text=texts)
def test_any_command_line(tiny_model: Path, given_flags: list[tuple[str, ...]], text: str) -> None:
    check(inspect(tiny_model, *(part for flag in given_flags for part in flag), "--", text))
