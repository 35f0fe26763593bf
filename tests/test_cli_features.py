"""The contract of `features`: files, JSON lines, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import call
from safetensors.numpy import load_file
from support import make_model
from transformers import GPT2Model

from gpt2cli.core.engine import Engine

LINES = ["Once upon a time", "a", "The cat sat on the mat"]


@pytest.fixture(scope="module")
def theirs(tiny_model: Path) -> list[Any]:
    model = GPT2Model.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager").eval()
    engine = Engine.load(tiny_model)
    with torch.inference_mode():
        return [
            model(torch.tensor([engine.encode(line)]), output_hidden_states=True, output_attentions=True)
            for line in LINES
        ]


@pytest.mark.parametrize("kind", ["npz", "safetensors", "jsonl"])
def test_files(tiny_model: Path, theirs: list[Any], tmp_path: Path, kind: str) -> None:
    """The numbers of GPT2Model, in each format."""
    out = tmp_path / f"f.{kind}"
    flags = ("--lines", "--layers", "all", "--attention", "all", "-o", out)
    outcome = call("features", "-m", tiny_model, *flags, stdin="\n".join(LINES).encode())
    assert outcome.code == 0 and outcome.out == "" and os.listdir(tmp_path) == [out.name]
    if kind == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        states = [[np.array(row["layers"][str(n)]) for n in range(3)] for row in rows]
        weights = [[np.array(row["attention"][str(n)]) for n in (1, 2)] for row in rows]
    else:
        data: Any = np.load(out) if kind == "npz" else load_file(out)
        at = data["offsets"]
        assert list(np.diff(at)) == [len(line) for line in LINES]
        states = [[data[f"layer.{n}"][at[i] : at[i + 1]] for n in range(3)] for i in range(3)]
        weights = [[data[f"attention.{n}.{i}"] for n in (1, 2)] for i in range(3)]
    for i, wanted in enumerate(theirs):
        for n in range(3):
            np.testing.assert_allclose(states[i][n], wanted.hidden_states[n][0].numpy(), rtol=0, atol=1e-4)
        for n in range(2):
            np.testing.assert_allclose(weights[i][n], wanted.attentions[n][0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_pooled_with_ids(tiny_model: Path, theirs: list[Any], tmp_path: Path, pool: str) -> None:
    out, source = tmp_path / "f.npz", tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": f"n{i}", "text": t}) + "\n" for i, t in enumerate(LINES)))
    assert call("features", "-m", tiny_model, "--pool", pool, "-f", source, "-o", out).code == 0
    data = np.load(out)
    states = [wanted.last_hidden_state[0].numpy() for wanted in theirs]
    expected = [s.mean(axis=0) if pool == "mean" else s[-1] for s in states]
    np.testing.assert_allclose(data["layer.2"], np.stack(expected), rtol=0, atol=1e-4)
    about = json.loads(str(data["about"]))
    assert [text["id"] for text in about["texts"]] == ["n0", "n1", "n2"] and about["pool"] == pool


def test_json_lines_on_stdout(tiny_model: Path) -> None:
    outcome = call("features", "-m", tiny_model, "--layer", "0,-1", "--pool", "mean", "a b")
    (row,) = outcome.events
    assert sorted(row["layers"]) == ["0", "2"] and len(row["layers"]["2"]) == 32
    assert len(row["token_ids"]) == 3 and "attention" not in row


def test_too_long(tiny_model: Path) -> None:
    text = "x" * 70
    assert call("features", "-m", tiny_model, text).code == 6
    (row,) = call("features", "-m", tiny_model, "--truncate", text).events
    assert len(row["token_ids"]) == 64


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--layer", "3", "a"), 2),
        (("--layer", "x", "a"), 2),
        (("--layer", "2-1", "a"), 2),
        (("--attention", "2-1", "a"), 2),
        (("--layer", "", "a"), 2),
        (("--attention", "0", "a"), 2),
        (("-o", "x.csv", "a"), 2),
        (("-o", "/nowhere/x.npz", "a"), 2),
        (("--pool", "max", "a"), 2),
        (("--batch-tokens", "0", "a"), 2),
        (("--lines", "--from-jsonl", "a"), 2),
        (("-f", "/nowhere/x"), 2),
    ],
)
def test_refused_in_one_line(tiny_model: Path, arguments: tuple[str, ...], code: int) -> None:
    outcome = call("features", "-m", tiny_model, *arguments)
    assert outcome.code == code, outcome.err
    assert outcome.out == "" and outcome.err.startswith("error: ") and "defect" not in outcome.err
    assert len(outcome.err.splitlines()) <= 2


def test_a_file_stands_before_stdin(tiny_model: Path, tmp_path: Path) -> None:
    """`features -f FILE -` once read stdin alone, and said nothing of the file."""
    file = tmp_path / "before.txt"
    file.write_text("ab")
    alone = call("features", "-m", tiny_model, "--pool", "mean", "ab cd").out
    assert call("features", "-m", tiny_model, "--pool", "mean", "-f", file, "-", stdin=b"cd").out == alone
    rows = call("features", "-m", tiny_model, "--lines", "-f", file, "-", stdin=b"cd\n").events
    assert [len(row["token_ids"]) for row in rows] == [2, 2]


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    """An id outside the vocabulary was an IndexError of torch's."""
    model = make_model(tmp_path / "model", vocab_size=200, bos_token_id=None, eos_token_id=None)
    for command in ("features", "generate", "score"):
        outcome = call(command, "-m", model, "a b")
        assert outcome.code == 5 and "vocabulary has 200" in outcome.err, (command, outcome.err)
