"""`gpt2cli config`, in process."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli import call

from gpt2cli.settings import KEYS, environment_name, unknown_variables


def test_set_get_unset() -> None:
    assert call("config", "get", "top-k").out == ""
    assert call("config", "set", "top-k", "40").code == 0
    assert call("config", "get", "top_k").out == "40\n"
    assert call("config", "unset", "top_k").code == 0
    assert call("config", "get", "top_k").out == ""
    assert "was not set" in call("config", "unset", "top_k").err


def test_list_says_where_a_value_comes_from() -> None:
    call("config", "set", "model", "gpt2")
    outcome = call("config", "list", GPT2CLI_TOP_K="7")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in outcome.out.splitlines()}
    assert set(rows) == set(KEYS)
    assert (rows["model"], rows["top_k"]) == (["gpt2", "config.toml"], ["7", "environment"])
    assert call("config", "list", "--json").document["model"] == {"value": "gpt2", "source": "config.toml"}
    shown = call("config", "list", tty="out", NO_COLOR="1").out
    assert "gpt2" in shown and "config.toml" in shown


def test_path_is_below_home() -> None:
    assert call("config", "path").out.strip().endswith("config.toml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "bogus", "1"), "bogus"),
        (("set", "top-k", "x"), "whole number"),
        (("set", "top-k", "-1"), "not allowed"),
        (("set", "temperature", "nan"), "not allowed"),
        (("set", "offline", "perhaps"), "true or false"),
        (("set", "device", "tpu"), "tpu"),
        (("set", "model", ""), "empty"),
        (("get", "bogus"), "bogus"),
    ],
)
def test_wrong_values(arguments: tuple[str, ...], says: str) -> None:
    outcome = call("config", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and says in outcome.err


def test_wrong_environment_is_named() -> None:
    outcome = call("config", "list", GPT2CLI_TOP_K="x")
    assert outcome.code == 2
    assert "GPT2CLI_TOP_K" in outcome.err


def test_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is a file stands for a read-only place: tests may run as root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "file"))
    outcome = call("config", "set", "top-k", "4")
    assert outcome.code in (1, 2)
    assert outcome.err.startswith("error: ")


def test_a_variable_that_means_nothing_is_warned_of() -> None:
    """A misspelt setting was passed over in silence."""
    line = "warning: GPT2CLI_TOPK in the environment means nothing to gpt2cli; did you mean GPT2CLI_TOP_K?\n"
    assert call("config", "path", GPT2CLI_TOPK="7").err == line
    both = call("list", GPT2CLI_TOPK="7", GPT2CLI_B="1")
    assert both.err.startswith("warning: GPT2CLI_B, GPT2CLI_TOPK in the environment mean nothing")
    assert both.code == 0 and both.err.count("\n") == 1
    assert call("config", "path", GPT2CLI_TOPK="7", GPT2CLI_QUIET="1").err == ""
    assert call("list", "-q", GPT2CLI_TOPK="7").err == ""
    ours = ("HOME", "SHARED", "REQUIRE_SHARED", "UPDATE", "NATIVE", "NATIVE_LIBRARY", "TEST_PATIENCE")
    known = {environment_name(key) for key in KEYS} | {f"GPT2CLI_{name}" for name in ours}
    assert unknown_variables({**dict.fromkeys(known, "1"), "GPT2CLI_": "1", "PATH": "x"}) == ["GPT2CLI_"]
