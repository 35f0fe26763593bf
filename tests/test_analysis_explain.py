"""An explanation is what transformers' own processors do, and what our engine draws."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import load_fp32, make_model
from transformers import GPT2LMHeadModel
from transformers.generation import logits_process as processors

from gpt2cli.analysis.explain import Explanation, explain
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong
from gpt2cli.options import GenerateOptions, SamplingOptions

PROCESSORS: dict[str, Any] = {
    "repetition_penalty": processors.RepetitionPenaltyLogitsProcessor,
    "no_repeat_ngram_size": processors.NoRepeatNGramLogitsProcessor,
    "temperature": processors.TemperatureLogitsWarper,
    "top_k": processors.TopKLogitsWarper,
    "top_p": processors.TopPLogitsWarper,
    "min_p": processors.MinPLogitsWarper,
    "typical_p": processors.TypicalLogitsWarper,
}
OFF = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("explain") / "m", std=0.12, seed=3)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return load_fp32(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> GPT2LMHeadModel:
    transformers.logging.set_verbosity_error()
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(directory)
    return model.eval()


def some_options(pick: random.Random) -> dict[str, Any]:
    values = {
        "repetition_penalty": pick.choice([1.3, 0.8, 5.0]),
        "no_repeat_ngram_size": pick.choice([1, 2, 3]),
        "temperature": pick.choice([0.5, 0.7, 1.8]),
        "top_k": pick.choice([1, 5, 40, 1000]),
        "top_p": pick.choice([0.3, 0.9, 0.99]),
        "min_p": pick.choice([0.02, 0.1, 0.5]),
        "typical_p": pick.choice([0.2, 0.9]),
    }
    return {name: value if pick.random() < 0.6 else OFF[name] for name, value in values.items()}


@pytest.mark.parametrize("number", range(60))
def test_every_filter_as_transformers(engine: Engine, theirs: GPT2LMHeadModel, number: int) -> None:
    """What each removed, what it left, and the distribution at the end, from transformers' own classes."""
    pick = random.Random(number)
    given = some_options(pick)
    ids = [pick.randrange(257) for _ in range(pick.randrange(1, 30))] * pick.choice([1, 2])
    found = explain(engine.backend, ids, SamplingOptions(**given), actual=7, top=12)

    with torch.inference_mode():
        scores = theirs(torch.tensor([ids])).logits[:, -1]
    own = scores[0].double().softmax(-1)
    removed_by: dict[int, str] = {}
    effects = iter(found.effects)
    for name, kind in PROCESSORS.items():
        if given[name] == OFF[name]:
            continue
        effect = next(effects)
        assert (effect.option, effect.value) == (name, given[name])
        before = scores
        scores = kind(given[name])(torch.tensor([ids]), before)
        gone = (scores.isinf() & ~before.isinf())[0].nonzero().squeeze(1).tolist()
        removed_by.update(dict.fromkeys(gone, name))
        p, q = before[0].double().softmax(-1), scores[0].double().softmax(-1)
        assert (effect.removed, effect.left) == (len(gone), int((~scores.isinf()).sum()))
        assert effect.moved == pytest.approx(float((p - q).abs().sum()) / 2, abs=1e-5)
        assert effect.entropy == pytest.approx(float(torch.special.entr(q).sum()), abs=1e-4)
        if name in ("top_k", "top_p", "min_p", "typical_p"):
            assert effect.moved == pytest.approx(float(p[gone].sum()), abs=1e-5)
    assert next(effects, None) is None

    left = scores[0].double().softmax(-1)
    assert found.left == int((left > 0).sum())
    assert found.entropy == pytest.approx(float(torch.special.entr(own).sum()), abs=1e-4)
    assert found.actual is not None and found.actual.token == 7
    for candidate in (*found.candidates, found.actual):
        assert candidate.before == pytest.approx(float(own[candidate.token]), abs=1e-6)
        assert candidate.after == pytest.approx(float(left[candidate.token]), abs=1e-5)
        assert candidate.removed_by == removed_by.get(candidate.token)
        assert candidate.rank == int((own > own[candidate.token]).sum()) + 1
    listed = {candidate.token for candidate in found.candidates}
    assert set(own.topk(12).indices.tolist()) <= listed
    assert {t for t in left.topk(12).indices.tolist() if left[t] > 0} <= listed


@pytest.mark.parametrize("number", range(40))
def test_the_token_drawn_is_the_one_generated(engine: Engine, number: int) -> None:
    """The explanation of a step is about the step that ``generate`` makes."""
    pick = random.Random(1000 + number)
    given = some_options(pick) | ({"temperature": 0.0} if number % 5 == 0 else {})
    prompt = [pick.randrange(256) for _ in range(pick.randrange(1, 40))]
    options = GenerateOptions(**given, seed=pick.randrange(2**32), max_new_tokens=4, ignore_eos=True)
    drawn = engine.generate(prompt, options).choices[0].token_ids
    for at in range(len(drawn)):
        ids = [*prompt, *drawn[:at]]
        found = explain(engine.backend, ids, options, seed=options.seed)
        assert found.drawn is not None and found.drawn.token == drawn[at]
        assert found.drawn.after > 0
        assert found.drawn.removed_by is None


def test_greedy_leaves_one(engine: Engine) -> None:
    found = explain(
        engine.backend, [1, 2, 3], SamplingOptions(temperature=0, repetition_penalty=1.5, top_k=5)
    )
    assert [effect.option for effect in found.effects] == ["repetition_penalty", "temperature"]
    assert (found.left, found.effects[-1].removed, found.noise) == (1, 256, None)
    assert found.drawn is not None and found.drawn.after == 1.0
    assert f"{found.effects[-1].entropy:.2f}" == "0.00"


def test_nothing_active(engine: Engine) -> None:
    found: Explanation = explain(engine.backend, [1], SamplingOptions(top_k=0))
    assert (found.effects, found.left, found.drawn) == ((), 257, None)
    assert sum(c.after for c in found.candidates) < 1


def test_no_room(engine: Engine) -> None:
    """The 65th token of a context of 64 cannot be drawn; the 64th can."""
    assert explain(engine.backend, [1] * 63, SamplingOptions()).position == 63
    with pytest.raises(PromptTooLong):
        explain(engine.backend, [1] * 64, SamplingOptions())
