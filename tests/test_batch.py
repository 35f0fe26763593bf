"""Prompts of different lengths in one batch: each text is the one it gets alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support import BACKENDS, load_on, make_model, some_slow

from gpt2cli.core import memory, scheduler
from gpt2cli.core.backend import Batch, Floats
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Result
from gpt2cli.errors import Gpt2cliError, PromptTooLong, UsageError
from gpt2cli.options import GenerateOptions, LoadOptions

PROMPTS = ["Once", "A much longer prompt than that", "x", "Dear Sir, I am", "no"]


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine: Engine = load_on(request.param, make_model(tmp_path_factory.mktemp("model"), std=0.2))
    return engine


def _shown(result: Result) -> list[tuple[str, list[int], str | None]]:
    return [(choice.text, choice.token_ids, choice.finish_reason) for choice in result.choices]


OPTIONS = [
    GenerateOptions(temperature=0, max_new_tokens=20),
    GenerateOptions(seed=5, max_new_tokens=20),
    GenerateOptions(seed=5, max_new_tokens=20, num_return_sequences=3, top_p=0.9),
    GenerateOptions(seed=6, max_new_tokens=30, stop=("e", "th"), temperature=0.8),
    GenerateOptions(seed=7, max_length=40, top_k=0, repetition_penalty=1.3),
    GenerateOptions(seed=8, max_new_tokens=90, overflow="slide", min_p=0.01),
    GenerateOptions(seed=8, max_new_tokens=90),
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_each_text_is_as_alone(engine: Engine, options: GenerateOptions) -> None:
    together = engine.generate(PROMPTS, options)
    assert [_shown(result) for result in together] == [_shown(engine.generate(p, options)) for p in PROMPTS]
    for result, prompt in zip(together, PROMPTS, strict=True):
        alone = engine.generate(prompt, options)
        assert options.greedy or result.options.seeds == alone.options.seeds
        for field in ("prompt_tokens", "completion_tokens", "dropped_tokens"):
            assert getattr(result.stats, field) == getattr(alone.stats, field)


@pytest.mark.parametrize("precision", some_slow(["auto", "fp32", "bf16", "int8", "int4"], 1))
def test_trained_weights(precision: str, record_property: pytest.RecordProperty) -> None:
    """On a model with real distributions; where rows are rounded differently, near-ties are few."""
    load = LoadOptions(precision=precision, device="cpu")  # type: ignore[arg-type]
    engine = Engine.load(Path(scheduler.__file__).parents[1] / "builtin", load)
    rng = random.Random(1)
    prompts = [[rng.randrange(300, 4000) for _ in range(rng.randrange(1, 60))] for _ in range(20)]
    options = GenerateOptions(seed=3, max_new_tokens=30)
    together = engine.generate(prompts, options)
    different = sum(
        result.choices[0].token_ids != engine.generate(prompt, options).choices[0].token_ids
        for result, prompt in zip(together, prompts, strict=True)
    )
    record_property("texts that differ, of 20", different)
    assert different <= 1


def test_logprobs(engine: Engine) -> None:
    options = GenerateOptions(seed=1, max_new_tokens=6, logprobs=2)
    for result, prompt in zip(engine.generate(PROMPTS, options), PROMPTS, strict=True):
        alone = engine.generate(prompt, options)
        for found, expected in zip(result.choices[0].logprobs, alone.choices[0].logprobs, strict=True):
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [token for token, _ in found.top] == [token for token, _ in expected.top]


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_more_than_run_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    options = GenerateOptions(seed=1, max_new_tokens=9, num_return_sequences=2)
    whole = engine.generate(PROMPTS, options)
    monkeypatch.setattr(scheduler, "ROWS", rows)
    assert [_shown(r) for r in engine.generate(PROMPTS, options)] == [_shown(r) for r in whole]


def test_token_ids_and_lists_of_one(engine: Engine) -> None:
    options = GenerateOptions(temperature=0, max_new_tokens=5)
    ids = [engine.encode(prompt) for prompt in PROMPTS]
    assert [_shown(r) for r in engine.generate(ids, options)] == [
        _shown(r) for r in engine.generate(PROMPTS, options)
    ]
    (one,) = engine.generate(["Once"], options)
    assert _shown(one) == _shown(engine.generate("Once", options))


def test_nothing_is_generated_when_one_prompt_is_wrong(engine: Engine) -> None:
    with pytest.raises(PromptTooLong):
        engine.generate(["fine", "x" * 500], GenerateOptions(max_new_tokens=5))
    with pytest.raises(UsageError):
        engine.generate([[1, 2], [9999]], GenerateOptions(max_new_tokens=5))
    with pytest.raises(UsageError):
        engine.generate([[1, 2], []], GenerateOptions(max_new_tokens=5))


def test_interrupted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was generated so far is kept."""
    forward, steps = engine.backend.forward, []

    def counted(batch: Batch) -> Floats:
        steps.append(1)
        if len(steps) == 8:
            engine.interrupt()
        return forward(batch)

    monkeypatch.setattr(engine.backend, "forward", counted)
    results = engine.generate(PROMPTS, GenerateOptions(seed=1, max_new_tokens=30))
    assert {result.choices[0].finish_reason for result in results} == {"interrupted"}
    assert all(0 < len(result.choices[0].token_ids) < 30 for result in results)
    monkeypatch.undo()
    assert engine.generate("x", GenerateOptions(seed=1)).choices[0].finish_reason != "interrupted"


def test_too_much_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(Gpt2cliError, match="memory"):
        engine.generate(PROMPTS, GenerateOptions(max_new_tokens=5))
    with pytest.raises(Gpt2cliError, match="32 texts at once need"):
        engine.stream("x", GenerateOptions(max_new_tokens=5, num_return_sequences=100))
    engine.generate("x", GenerateOptions(max_new_tokens=5))
