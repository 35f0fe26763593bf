"""Generated command lines: whatever is typed, a documented exit code and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli import Outcome, call, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import series, some_slow

CODES = {0, 2, 3, 4, 5, 6}
NUMERIC = [
    "--max-new-tokens",
    "--max-length",
    "--temperature",
    "--top-k",
    "--top-p",
    "--min-p",
    "--typical-p",
]
NUMERIC += ["--repetition-penalty", "--no-repeat-ngram-size", "--seed", "--logprobs", "--threads"]
SWITCHES = [
    "--greedy",
    "--ignore-eos",
    "--special-tokens",
    "--strict",
    "--sanitize",
    "--json",
    "--jsonl",
    "-q",
]
SWITCHES += ["--echo", "--no-stream", "--offline", "--allow-pickle", "--debugg", "-"]

numbers = st.one_of(
    st.integers(-3, 80).map(str),
    st.floats(-2, 3).map(str),
    st.sampled_from(
        ["nan", "inf", "-inf", "1e-9", "1e400", "0", "", "x", "99999999999999999999", "\uff14", "-0.0"]
    ),
)
texts = st.text(st.characters(exclude_characters="\x00"), max_size=40)
valued = st.tuples(
    st.sampled_from(NUMERIC),
    numbers,
)
few = st.tuples(st.just("-n"), st.sampled_from(["0", "1", "2", "3", "-1", "x"]))
chosen = st.one_of(
    st.tuples(st.just("--rng"), st.sampled_from(["default", "transformers", "x"])),
    st.tuples(st.just("--overflow"), st.sampled_from(["error", "truncate", "slide", ""])),
    st.tuples(
        st.just("--precision"), st.sampled_from(["auto", "fp32", "fp16", "bf16", "int8", "int4", "fp8"])
    ),
    st.tuples(st.just("--device"), st.sampled_from(["auto", "cpu", "tpu"])),
    st.tuples(st.sampled_from(["--stop", "-p", "--revision", "-f"]), texts),
)
switches = st.tuples(st.sampled_from(SWITCHES))
flags = st.lists(st.one_of(valued, few, chosen, switches), max_size=6)
prompts = st.one_of(st.just([]), texts.map(lambda text: ["--", text]), texts.map(lambda text: [text]))
stdin = st.one_of(
    st.just(b""), st.binary(max_size=200), texts.map(lambda text: text.encode("utf-8", "replace"))
)


def check(outcome: Outcome) -> None:
    assert outcome.code in CODES, outcome
    assert "Traceback" not in outcome.err
    assert "defect" not in outcome.err
    if outcome.code:
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, outcome.err


def thorough(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check_command_line(model: Path, flags: list[tuple[str, ...]], prompt: list[str], data: bytes) -> None:
    arguments = [part for flag in flags for part in flag]
    check(call("generate", "-m", model, *arguments, *prompt, stdin=data))


@thorough(60)
@given(flags=flags, prompt=prompts, data=stdin)
def test_any_command_line(
    tiny_model: Path, flags: list[tuple[str, ...]], prompt: list[str], data: bytes
) -> None:
    check_command_line(tiny_model, flags, prompt, data)


@pytest.mark.slow
@thorough(series(1000, 400))
@given(flags=flags, prompt=prompts, data=stdin)
def test_a_thousand_command_lines(
    tiny_model: Path, flags: list[tuple[str, ...]], prompt: list[str], data: bytes
) -> None:
    check_command_line(tiny_model, flags, prompt, data)


@pytest.mark.parametrize("seed", some_slow(range(20), 6))
def test_any_command_line_as_a_process(tiny_model: Path, seed: int) -> None:
    """Twenty of them, from the shell's side."""
    import random

    draw = random.Random(seed)
    arguments: list[str] = []
    for _ in range(draw.randrange(5)):
        name = draw.choice(["--top-k", "--top-p", "--temperature", "--seed", "-n", "--max-length", "--stop"])
        arguments += [name, draw.choice(["0", "1", "2", "0.5", "-1", "nan", "x", ""])]
    arguments += draw.sample(["--json", "--jsonl", "--echo", "--greedy", "--no-stream", "-q"], 2)
    data = draw.randbytes(draw.randrange(60))
    check(run("generate", "-m", tiny_model, *arguments, stdin=data))
