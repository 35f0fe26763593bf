"""What the engine may be asked, and the exact ends of every range."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import pytest

from gpt2cli.errors import InvalidOption
from gpt2cli.options import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_WHOLE,
    GenerateOptions,
    LoadOptions,
    SamplingOptions,
)

TINY = math.ulp(0.0)
UP, DOWN = math.inf, -math.inf
LARGEST = sys.float_info.max


def after(value: float) -> float:
    return math.nextafter(value, UP)


def before(value: float) -> float:
    return math.nextafter(value, DOWN)


ALLOWED: dict[str, list[Any]] = {
    "temperature": [0, 0.0, -0.0, 0.001, 1, LARGEST],
    "top_k": [0, 1, 50257, MAX_WHOLE],
    "top_p": [TINY, 0.5, 1, 1.0],
    "min_p": [0, 0.0, TINY, 1, 1.0],
    "typical_p": [TINY, 0.5, 1, 1.0],
    "repetition_penalty": [0.01, 1, 100, 100.0],
    "no_repeat_ngram_size": [0, 1, MAX_WHOLE],
    "max_new_tokens": [None, 1, MAX_WHOLE],
    "max_length": [None, 1, MAX_WHOLE],
    "max_sentences": [None, 1, MAX_WHOLE],
    "num_return_sequences": [1, 4096],
    "seed": [None, 0, MAX_SEED],
    "rng": ["default", "transformers"],
    "overflow": ["error", "truncate", "slide"],
    "stop": [(), ("a",), ["a", "\n"]],
    "logprobs": [None, 0, 1, MAX_WHOLE],
    "draft": ["auto", "off", "lookup", "distilgpt2"],
    "presence_penalty": [-2, 0, 2.0],
    "frequency_penalty": [-2, 0, 2.0],
    "logit_bias": [(), ((0, -100),), ((5, 100.0), (6, 0))],
    "device": ["auto", "cpu", "cuda", "mps"],
    "precision": ["auto", "fp32", "fp16", "bf16", "int8", "int4"],
    "threads": [None, 1, 1024],
    "backend": ["auto", "native", "torch"],
}
REFUSED: dict[str, list[Any]] = {
    "temperature": [before(0.0), before(0.001), -1, 10**400],
    "top_k": [-1, 1.0, MAX_WHOLE + 1, 10**5000],
    "top_p": [0, 0.0, -0.0, after(1.0), 2, -TINY],
    "min_p": [-TINY, after(1.0), -1, 2],
    "typical_p": [0, after(1.0), -TINY],
    "repetition_penalty": [before(0.01), after(100.0), 0, -1],
    "no_repeat_ngram_size": [-1, 2.0, MAX_WHOLE + 1],
    "max_new_tokens": [0, -1, 1.0, MAX_WHOLE + 1],
    "max_length": [0, -1, 1.0, MAX_WHOLE + 1],
    "max_sentences": [0, -1, 1.0, MAX_WHOLE + 1],
    "num_return_sequences": [0, -1, 4097, 1.0, None],
    "seed": [-1, MAX_SEED + 1, 0.0],
    "rng": ["", "Default", None],
    "overflow": ["", "wrap", None],
    "stop": ["text", ("",), ("a", 1), None, 5],
    "logprobs": [-1, 1.0, MAX_WHOLE + 1],
    "draft": ["", None, True],
    "presence_penalty": [after(2.0), before(-2.0)],
    "frequency_penalty": [after(2.0), before(-2.0)],
    "logit_bias": [
        ((0, after(100.0)),),
        ((-1, 0),),
        ((1, 2, 3),),
        ((1, 0), (1, 0)),
        [(1, 2)],
        ((1.0, 2),),
        5,
    ],
    "device": ["", "tpu", None],
    "precision": ["", "fp8", 16],
    "threads": [0, 1025, 1.0, -1],
    "backend": ["", "numpy", None],
}
NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
)
SWITCHES = {"ignore_eos", "special_tokens", "allow_pickle", "converted"}
FOR_LOADING = {field.name for field in dataclasses.fields(LoadOptions)}


def build(option: str, value: Any) -> Any:
    given: dict[str, Any] = {option: value}
    return LoadOptions(**given) if option in FOR_LOADING else GenerateOptions(**given)


def test_every_option_is_tried() -> None:
    """An option added without its limits here."""
    fields = {field.name for field in dataclasses.fields(GenerateOptions)} | FOR_LOADING
    assert set(ALLOWED) == set(REFUSED) == fields - SWITCHES


def refused(option: str, value: Any) -> bool:
    """Whether `InvalidOption` is raised about this option, and nothing else."""
    try:
        build(option, value)
    except InvalidOption as error:
        return error.option == option and error.exit_code == 2 and len(str(error)) < 200
    return False


@pytest.mark.parametrize("option", ALLOWED)
def test_allowed(option: str) -> None:
    for value in ALLOWED[option]:
        assert getattr(build(option, value), option) == value


@pytest.mark.parametrize("option", REFUSED)
def test_refused(option: str) -> None:
    """A value that gets through ends in a traceback, or in a silently wrong draw.

    Python itself refuses to write 10**5000 in decimal, so that the message could raise as well.
    """
    for n, value in enumerate(REFUSED[option]):
        assert refused(option, value), f"value {n} of {option}"


@pytest.mark.parametrize("option", sorted(set(ALLOWED) - {"stop", "rng", "overflow", "draft"} - FOR_LOADING))
def test_a_number_is_a_number(option: str) -> None:
    """A generation_config can hold any JSON; ``True`` passes for 1 wherever isinstance is asked."""
    for value in (math.nan, math.inf, -math.inf, True, False, "1", [1], {}, b"1"):
        assert refused(option, value), value


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_is_not_unset(option: str) -> None:
    with pytest.raises(InvalidOption):
        build(option, None)


def test_one_length_or_the_other() -> None:
    with pytest.raises(InvalidOption, match="not together"):
        GenerateOptions(max_new_tokens=5, max_length=5)


def test_greedy_is_one_text() -> None:
    assert GenerateOptions(temperature=0).greedy
    assert not GenerateOptions(temperature=0.001).greedy
    with pytest.raises(InvalidOption, match="same text"):
        GenerateOptions(temperature=0, num_return_sequences=2)


def test_each_sequence_has_a_seed() -> None:
    """Sequence i of a run must be what ``--seed S+i`` gives alone, so that S+i must be a seed as well."""
    assert GenerateOptions(seed=7, num_return_sequences=3).seeds == (7, 8, 9)
    assert GenerateOptions(seed=MAX_SEED - 2, num_return_sequences=3).seeds[-1] == MAX_SEED
    with pytest.raises(InvalidOption, match=f"0 to {MAX_SEED - 2}"):
        GenerateOptions(seed=MAX_SEED - 1, num_return_sequences=3)


def test_transformers_draws_from_one_seed() -> None:
    options = GenerateOptions(seed=MAX_SEED, num_return_sequences=3, rng="transformers")
    assert options.seeds == (MAX_SEED,) * 3


def test_a_seed_is_drawn_when_none_is_given() -> None:
    options = GenerateOptions(num_return_sequences=4096)
    with pytest.raises(ValueError, match="no seed"):
        options.seeds  # noqa: B018
    drawn = [options.settled() for _ in range(5)]
    assert len({each.seed for each in drawn}) == 5
    assert all(max(each.seeds) <= MAX_SEED for each in drawn)
    assert drawn[0].settled() == drawn[0]


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, (DEFAULT_MAX_NEW_TOKENS, None)),
        ({"max_new_tokens": 3}, (3, None)),
        ({"max_length": 3}, (None, 3)),
    ],
)
def test_one_length_stands(given: dict[str, Any], settled: tuple[int | None, int | None]) -> None:
    """The default length must not join a max-length: the two exclude each other."""
    options = GenerateOptions(**given).settled()
    assert (options.max_new_tokens, options.max_length) == settled


def test_the_defaults_are_those_of_transformers() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingOptions)}
    assert defaults == {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }


def test_options_do_not_change() -> None:
    for options, field in ((GenerateOptions(), "top_k"), (LoadOptions(), "device")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field, 1)
