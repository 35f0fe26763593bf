"""``gpt2cli bench``: what it measures is there, and adds up; no speed is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli import call
from support import make_model

from gpt2cli.bench import Contender, Figure, Report, long_context
from gpt2cli.checkpoint import ModelConfig

FAST = ("--rounds", "1", "--no-cold")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), n_positions=256)


def test_json(model: Path) -> None:
    result = call("bench", "-m", str(model), "--json", "--precision", "auto", "--precision", "int8", *FAST)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["model"] == str(model) and document["machine"]["threads"] >= 1
    assert [engine["name"] for engine in document["engines"]] == ["auto", "int8"]
    for engine in document["engines"]:
        assert engine["kernels"]
        assert set(engine["figures"]) >= {"load_s", "prefill_32", "decode_1", "decode_8", "decode_long"}
        for figure in engine["figures"].values():
            assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert engine["to_transformers"] == {}


def test_against_transformers(model: Path) -> None:
    arguments = ["bench", "-m", str(model), "--against", "transformers", "--precision", "fp32", "--json"]
    result = call(*arguments, "--rounds", "2", "--no-cold")
    assert result.code == 0, result.err
    ours, theirs = json.loads(result.out)["engines"]
    assert theirs["name"] == "transformers"
    assert set(ours["to_transformers"]) >= {"decode_1", "decode_8", "prefill_32"}


def test_a_table_of_tabs_in_a_pipe(model: Path) -> None:
    result = call("bench", "-m", str(model), "--precision", "fp32", *FAST)
    assert result.code == 0 and "\x1b" not in result.out
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert rows[0] == ["", "fp32"] and rows[1][0] == "load"
    assert {len(row) for row in rows} == {2}
    assert "round 1 of 1" in result.err


@pytest.mark.slow
def test_everything(model: Path, tmp_path: Path) -> None:
    """New processes, a busy core, a plot."""
    plot = tmp_path / "plot.svg"
    arguments = ["bench", "-m", str(model), "--precision", "auto", "--rounds", "1", "--busy", "--json"]
    result = call(*arguments, "--plot", str(plot))
    assert result.code == 0, result.err
    document = json.loads(result.out)
    figures = document["engines"][0]["figures"]
    assert document["import_torch_s"] > 0 and figures["first_token_s"]["median"] > 0
    assert figures["busy_ratio"]["median"] > 0
    if sys.platform == "linux":
        assert 50e6 < figures["peak_bytes"]["median"] < 5e9
    assert plot.read_text("utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--precision", "fp8"), "fp8"),
        (("--rounds", "0"), "rounds"),
        (("--against", "llama"), "against"),
        (("--plot", "plot.gif"), ".svg"),
    ],
)
def test_wrong_usage(model: Path, arguments: tuple[str, ...], says: str) -> None:
    result = call("bench", "-m", str(model), *arguments)
    assert result.code == 2 and says in result.err and result.err.count("\n") <= 2


def test_the_ratio_is_taken_round_by_round() -> None:
    """A machine that slows down between rounds slows both down."""
    ours, theirs = Contender("auto"), Contender("transformers")
    for speed in (1.0, 0.2, 1.0):
        ours.add("decode_1", 40 * speed)
        theirs.add("decode_1", 10 * speed)
    report = Report({}, [ours, theirs])
    assert report.ratio(ours, "decode_1") == 4 and report.ratio(ours, "decode_8") is None
    assert ours.figures["decode_1"] == Figure(40, 8, 40)


def test_spoiled() -> None:
    assert not Report({}, []).spoiled and not Report({}, [], others=0.1).spoiled
    assert Report({}, [], others=1.0).spoiled


def test_contexts() -> None:
    assert long_context(ModelConfig()) == 984
    assert long_context(ModelConfig(n_positions=64)) == 30
