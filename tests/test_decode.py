"""From ids to ids: drawing, ending, and the window that slides, against their plain definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import make_model
from torch import Tensor

from gpt2cli.core import decode as decode_module
from gpt2cli.core.decode import Step, decode, prefill
from gpt2cli.core.engine import Engine
from gpt2cli.core.model import GPT2
from gpt2cli.core.random import uniform
from gpt2cli.core.sampling import SequenceState, draw, make_filters
from gpt2cli.options import GenerateOptions

CONTEXT = 16
SLIDING = GenerateOptions(seed=0, overflow="slide", top_k=0)


def _model(directory: Path, n_positions: int = CONTEXT) -> GPT2:
    return Engine.load(make_model(directory, tokenizer=None, n_positions=n_positions, std=0.2)).model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT2:
    return _model(tmp_path_factory.mktemp("decode"))


def _states(prompt: Sequence[int], seeds: Sequence[int], dropped: int = 0) -> list[SequenceState]:
    return [
        SequenceState(n, seed, list(prompt), prompt_tokens=len(prompt), dropped=dropped)
        for n, seed in enumerate(seeds)
    ]


def _run(
    model: GPT2,
    states: list[SequenceState],
    options: GenerateOptions,
    *,
    new: int,
    eos: Sequence[int] = (),
) -> list[Step]:
    cache = model.new_cache()
    logits = prefill(model, cache, states[0].ids).expand(len(states), -1)
    cache = cache.expand(len(states))
    return [*decode(model, cache, logits, states, options, max_new_tokens=new, eos_ids=frozenset(eos))]


def _by_definition(model: GPT2, state: SequenceState, options: GenerateOptions, new: int) -> list[int]:
    """Every token from a forward pass over the whole window; the window as the house describes it."""
    ids, window, context = list(state.ids), 0, model.config.n_positions
    for _ in range(new):
        if len(ids) - window > context:
            window += max(1, context // 4)
        scores = model.forward(torch.tensor([ids[window:]]), model.new_cache())
        for apply in make_filters(options):
            scores = apply(scores, [replace(state, ids=ids)])
        u = uniform(state.seed, state.dropped + len(ids))
        ids.append(int(scores.argmax()) if options.greedy else draw(scores[0], u))
    return ids[len(state.ids) :]


OPTIONS = {
    "sampled": SLIDING,
    "filtered": replace(SLIDING, temperature=0.7, top_k=20, repetition_penalty=1.3),
    "greedy": replace(SLIDING, temperature=0),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n_positions", [1, 2, 3, 5, 16])
def test_sliding(tmp_path: Path, n_positions: int, name: str) -> None:
    """The window moves by quarters; the random numbers go on as if it had not moved."""
    model, options = _model(tmp_path, n_positions), OPTIONS[name]
    prompt = [3, 1, 4][:n_positions]
    seeds = [5] if options.greedy else [5, 6, 99]
    states = _states(prompt, seeds, dropped=1000)
    expected = [_by_definition(model, state, options, 50) for state in states]
    _run(model, states, options, new=50)
    assert [state.ids[len(prompt) :] for state in states] == expected
    for state in states:
        assert state.position == 1000 + len(prompt) + 50
        assert 0 <= len(state.ids) - 1 - state.window <= n_positions
        assert state.window % max(1, n_positions // 4) == 0 and state.finish_reason == "length"


def test_sliding_rows_of_unequal_length(model: GPT2) -> None:
    """Each row slides when it is full itself, and the others must not notice."""
    prompts = [[1, 2, 3], [*range(20, 34)], [7] * 8]
    expected = [
        _by_definition(model, _states(prompt, [n])[0], SLIDING, 40) for n, prompt in enumerate(prompts)
    ]
    states = [SequenceState(n, n, [*ids], prompt_tokens=len(ids)) for n, ids in enumerate(prompts)]
    padded = torch.zeros(3, 14, dtype=torch.long)
    for n, ids in enumerate(prompts):
        padded[n, : len(ids)] = torch.tensor(ids)
    cache = model.new_cache(rows=3)
    logits = model.forward(padded, cache, [len(ids) for ids in prompts])
    for _ in decode(model, cache, logits, states, SLIDING, max_new_tokens=40, eos_ids=frozenset()):
        pass
    found = [state.ids[len(prompt) :] for state, prompt in zip(states, prompts, strict=True)]
    assert found == expected


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_prefill_in_chunks(model: GPT2, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    ids = [*range(40, 40 + CONTEXT)]
    whole = model.forward(torch.tensor([ids]), model.new_cache())
    monkeypatch.setattr(decode_module, "PREFILL_CHUNK", chunk)
    cache = model.new_cache(capacity=1)
    torch.testing.assert_close(prefill(model, cache, ids), whole, rtol=0, atol=1e-5)
    assert cache.lengths == [CONTEXT]


def test_the_context_ends_a_text(model: GPT2) -> None:
    options = replace(SLIDING, overflow="error")
    states = _states([1, 2, 3], [0, 1])
    _run(model, states, options, new=100)
    assert [len(state.ids) for state in states] == [CONTEXT, CONTEXT]
    assert [state.finish_reason for state in states] == ["context", "context"]


def test_length_comes_before_context(model: GPT2) -> None:
    """The last token allowed is also the last there is room for: it is as long as was asked."""
    states = _states([1, 2, 3], [0])
    _run(model, states, replace(SLIDING, overflow="error"), new=CONTEXT - 3)
    assert states[0].finish_reason == "length"


def test_one_new_token_needs_no_further_forward(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = model.new_cache()
    logits = prefill(model, cache, [1, 2])

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a forward pass for nothing")

    monkeypatch.setattr(model, "forward", refuse)
    states = _states([1, 2], [0])
    steps = [*decode(model, cache, logits, states, SLIDING, max_new_tokens=1, eos_ids=frozenset())]
    assert len(steps) == 1 and steps[0].token == states[0].ids[-1]


def test_a_row_that_ends_leaves_the_others_as_they_were(model: GPT2) -> None:
    """eos in one row; the rest go on with their own keys, numbers and states."""
    seeds = [*range(6)]
    free = _states([9], seeds)
    _run(model, free, SLIDING, new=30)
    eos = {free[1].ids[4], free[4].ids[11]}
    states = _states([9], seeds)
    steps = _run(model, states, SLIDING, new=30, eos=[*eos])
    for state, whole in zip(states, free, strict=True):
        end = next((at for at, token in enumerate(whole.ids[1:], 1) if token in eos), None)
        assert state.ids == whole.ids[:end]
        assert state.finish_reason == ("length" if end is None else "eos")
        own = [step.token for step in steps if step.state is state]
        assert own == [*state.ids[1:], *([] if end is None else [None])]
    assert len({len(state.ids) for state in states}) > 2


def test_the_caller_may_end_a_sequence(model: GPT2) -> None:
    """As a stop string does: between two steps."""
    seeds, options = [3, 4, 5], SLIDING
    free = _states([9], seeds)
    _run(model, free, options, new=12)
    states, cache = _states([9], seeds), model.new_cache()
    logits = prefill(model, cache, [9]).expand(3, -1)
    steps = decode(model, cache.expand(3), logits, states, options, max_new_tokens=12, eos_ids=frozenset())
    for step in steps:
        if step.state.index == 1 and step.state.new_tokens == 4:
            step.state.finish_reason = "stop"
    assert states[1].ids == free[1].ids[:5]
    assert [states[n].ids for n in (0, 2)] == [free[n].ids for n in (0, 2)]


def test_every_sequence_has_one_step_in_each_round(model: GPT2) -> None:
    steps = _run(model, _states([9], [1, 2, 3]), SLIDING, new=4)
    assert [step.state.index for step in steps] == [0, 1, 2] * 4


def test_logprobs_are_those_of_the_raw_logits(model: GPT2) -> None:
    options = replace(SLIDING, temperature=0.5, top_k=3, logprobs=4)
    states = _states([9, 8], [1])
    steps = _run(model, states, options, new=8)
    logits = model.forward(torch.tensor([states[0].ids]), model.new_cache(), all_positions=True)[0]
    expected = logits.log_softmax(dim=-1)
    for at, step in enumerate(steps, 1):
        assert step.logprobs is not None and step.token is not None
        assert step.logprobs.logprob == pytest.approx(float(expected[at, step.token]), abs=1e-5)
        values, ids = expected[at].topk(4)
        assert [token for token, _ in step.logprobs.top] == ids.tolist()
        assert [value for _, value in step.logprobs.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_no_logprobs_unless_asked(model: GPT2) -> None:
    assert all(step.logprobs is None for step in _run(model, _states([9], [1]), SLIDING, new=3))
