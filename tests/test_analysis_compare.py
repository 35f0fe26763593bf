"""What is said of texts side by side, against transformers and against the engine alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import load_fp32, make_model, shared
from transformers import GPT2LMHeadModel

from gpt2cli.analysis.compare import (
    Run,
    _common,
    divergence,
    given_words,
    likeliest_words,
    opinion,
    run_grid,
)
from gpt2cli.analysis.nextword import NextWords
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong
from gpt2cli.hub.resolve import resolve

GIVEN = {"max_new_tokens": 10, "ignore_eos": True}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("compare")
    return [make_model(home / str(seed), std=0.15, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def engines(directories: list[Path]) -> list[Engine]:
    """Two models of one vocabulary, and ``tiny`` with another."""
    return [load_fp32(directory) for directory in [*directories, resolve("tiny").directory]]


def nll_of(directory: Path, ids: list[int], first: int) -> float:
    """By transformers: of the tokens from ``first`` on."""
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(directory)
    with torch.inference_mode():
        logprobs = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[at - 1, ids[at]]) for at in range(first, len(ids)))


def grid(engines: list[Engine]) -> list[Run]:
    settings = [{**GIVEN, "temperature": 0.0}, {**GIVEN, "temperature": 0.8}]
    return list(run_grid(engines, ["ab", "The cat"], settings, [1, 2]))


def test_the_grid_is_whole_and_each_text_is_what_the_engine_gives(engines: list[Engine]) -> None:
    runs = grid(engines)
    places = [(r.model, r.prompt, r.setting, r.seed_index) for r in runs]
    expected = [
        (m, p, s, i) for m in range(3) for p in range(2) for s in range(2) for i in range(2 if s else 1)
    ]
    assert places == expected
    for run in runs:
        loaded = engines[run.model]
        engine = Engine(loaded.checkpoint, loaded.backend, loaded.tokenizer)
        alone = engine.generate(["ab", "The cat"][run.prompt], run.options)
        assert run.choice.text == alone.text
        assert run.seed == (None if run.setting == 0 else [1, 2][run.seed_index])


def test_opinions_as_transformers(engines: list[Engine], directories: list[Path]) -> None:
    """Its own, and the other model's of the same tokens."""
    prompts = ["ab", "The cat"]
    for run in grid(engines[:2]):
        prompt = engines[0].encode(prompts[run.prompt])
        ids = [*prompt, *run.choice.token_ids]
        for model in range(2):
            found = opinion(engines, prompts[run.prompt], run, model)
            expected = nll_of(directories[model], ids, len(prompt))
            assert found.logprob == pytest.approx(-expected, abs=1e-3)
            assert (found.tokens, found.bytes, found.same_tokens) == (10, 10, True)
            assert found.bits_per_byte == pytest.approx(expected / math.log(2) / 10, abs=1e-4)
            if model == run.model:
                assert run.own.logprob == pytest.approx(found.logprob, abs=1e-4)


def test_other_tokens_only_bits_per_byte(engines: list[Engine], directories: list[Path]) -> None:
    """What ``tiny`` wrote, in the bytes of the other model."""
    run = next(run for run in grid(engines) if run.model == 2)
    found = opinion(engines, "ab", run, 0)
    assert engines[0].tokenizer is not None
    data = engines[0].tokenizer.encode(run.choice.text)
    expected = nll_of(directories[0], [*engines[0].encode("ab"), *data], 2)
    assert (found.same_tokens, found.tokens, found.bytes) == (False, len(data), len(run.choice.text.encode()))
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / len(data), abs=1e-4)
    assert divergence(engines, run, run).tokens == 10
    other = next(run for run in grid(engines) if run.model == 0)
    assert divergence(engines, run, other).tokens is None


def test_no_opinion_is_said_and_why(engines: list[Engine], tmp_path: Path) -> None:
    """A text that does not fit; one that is no text; one with letters that the model has not."""
    short = load_fp32(make_model(tmp_path / "short", n_positions=8))
    three = [engines[0], short, engines[2]]
    run = next(iter(run_grid([engines[0]], ["ab"], [GIVEN], [1])))
    assert "context of 8" in str(opinion(three, "ab", run, 1).refused)
    broken = next(r for seed in range(50) for r in run_grid([engines[0]], ["ab"], [GIVEN], [seed])
                  if "\ufffd" in r.choice.text)  # fmt: skip
    found = opinion(three, "ab", broken, 2)
    assert (found.logprob, found.bits_per_byte) == (None, None)
    assert "not whole" in str(found.refused)
    characters = load_fp32(shared("models", "makemore_names_lmj9", "hf"))
    story = next(iter(run_grid([engines[2]], ["Once"], [GIVEN], [1])))
    assert "no token" in str(opinion([engines[2], characters], "Once", story, 1).refused)


def test_a_prompt_that_does_not_fit_is_an_error(engines: list[Engine]) -> None:
    with pytest.raises(PromptTooLong):
        list(run_grid(engines[:1], ["x" * 64], [GIVEN], [1]))


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_common_prefix(one: str, other: str) -> None:
    length = _common(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == len(one) == len(other)


def test_divergence_of_texts(engines: list[Engine]) -> None:
    one, two = run_grid(engines[:1], ["ab"], [GIVEN], [1, 2])
    same = divergence(engines, one, one)
    assert (same.identical, same.characters, same.tokens) == (True, len(one.choice.text), 10)
    found = divergence(engines, two, one)
    assert not found.identical
    assert found.characters == _common(two.choice.text, one.choice.text)


def test_words_side_by_side(engines: list[Engine]) -> None:
    """Each word of any prompt's list has its probability after every prompt; given ones too."""
    tiny, prompts = engines[2], ["The king was very", "The queen was very"]
    table = likeliest_words(tiny, prompts, 5)
    assert table.finished
    for column, prompt in enumerate(prompts):
        place = NextWords(tiny, tiny.encode(prompt))
        best, _ = place.likeliest(5)
        assert {word.text for word in best} <= set(table.words)
        for word in best:
            row = table.probabilities[table.words.index(word.text)]
            assert row[column] == pytest.approx(word.probability, rel=1e-4)
        given = given_words(tiny, prompts, [word.text.strip() for word in best])
        assert [row[column] for row in given.probabilities] == pytest.approx(
            [word.probability for word in best], rel=1e-3
        )
    averages = [sum(row) for row in table.probabilities]
    assert averages == sorted(averages, reverse=True)
