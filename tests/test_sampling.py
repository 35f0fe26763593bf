"""The filters against transformers' processors, and the draw against its definition."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from gpt2cli.core.random import uniform
from gpt2cli.core.sampling import (
    NEVER,
    SequenceState,
    apply_min_p,
    apply_no_repeat_ngram,
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    apply_typical,
    draw,
    make_filters,
    make_sampler,
    token_logprobs,
)
from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import GenerateOptions, SamplingOptions

VOCAB = 37


def _random(rows: int = 6, vocab: int = VOCAB, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def _with_never(scores: Tensor) -> Tensor:
    scores = scores.clone()
    scores[:, ::3] = NEVER
    return scores


SCORES: dict[str, Callable[[], Tensor]] = {
    "random": _random,
    "small": lambda: _random(scale=0.01),
    "large": lambda: _random(scale=1e4),
    "ties": lambda: _random(rows=8).round(),
    "all equal": lambda: torch.full((3, VOCAB), 1.5),
    "two values": lambda: (_random(rows=8) > 0).float() * 5,
    "with -inf": lambda: _with_never(_random()),
    "ties and -inf": lambda: _with_never(_random().round()),
    "one left": lambda: torch.full((2, VOCAB), NEVER).index_fill(1, torch.tensor(4), -3.0),
    "one certain": lambda: _random(scale=0.1).index_fill(1, torch.tensor(9), 200.0),
    "one token": lambda: _random(vocab=1),
    "two tokens": lambda: _random(vocab=2),
    "four equal": lambda: torch.zeros(1, 4),
    "a whole vocabulary": lambda: _random(rows=2, vocab=50257, scale=4.0),
}

FILTERS: list[tuple[Callable[[Tensor, Any], Tensor], type[theirs.LogitsProcessor], tuple[float, ...]]] = [
    (apply_temperature, theirs.TemperatureLogitsWarper, (1e-3, 0.7, 1.3, 100.0)),
    (apply_top_k, theirs.TopKLogitsWarper, (1, 2, 5, 37, 60)),
    (apply_top_p, theirs.TopPLogitsWarper, (1e-6, 0.1, 0.5, 0.9, 0.999)),
    (apply_min_p, theirs.MinPLogitsWarper, (0.01, 0.5, 1.0)),
    (apply_typical, theirs.TypicalLogitsWarper, (0.1, 0.5, 0.95)),
]


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(
    ("ours", "processor", "value"),
    [
        pytest.param(ours, processor, value, id=f"{ours.__name__} {value}")
        for ours, processor, values in FILTERS
        for value in values
    ],
)
def test_filters(
    ours: Callable[[Tensor, Any], Tensor], processor: type[theirs.LogitsProcessor], value: float, kind: str
) -> None:
    scores = SCORES[kind]()
    before = scores.clone()
    found, ids = ours(scores, value), torch.zeros(len(scores), 1, dtype=torch.long)
    assert torch.equal(found, processor(value)(ids, scores))  # type: ignore[call-arg]
    assert torch.equal(scores, before)
    assert bool((found > NEVER).any(dim=-1).all())


HISTORIES = [[0], [1, 2, 1, 2, 1], [5] * 9, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 1, 4]]


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: f"{len(h)} tokens")
@pytest.mark.parametrize("kind", [kind for kind in SCORES if SCORES[kind]().shape[1] >= 10])
@pytest.mark.parametrize("penalty", [0.5, 1.2, 100.0])
def test_repetition_penalty(history: list[int], kind: str, penalty: float) -> None:
    """Negative scores are multiplied, positive ones divided; a token that comes twice counts once."""
    scores = SCORES[kind]()
    before, ids = scores.clone(), torch.tensor([history] * len(scores))
    found = apply_repetition_penalty(scores, [history] * len(scores), penalty)
    assert torch.equal(found, theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone()))
    assert torch.equal(scores, before)


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: f"{len(h)} tokens")
@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_no_repeat_ngram(history: list[int], size: int) -> None:
    scores = _random()
    before, ids = scores.clone(), torch.tensor([history] * len(scores))
    found = apply_no_repeat_ngram(scores, [history] * len(scores), size)
    assert torch.equal(found, theirs.NoRepeatNGramLogitsProcessor(size)(ids, scores.clone()))
    assert torch.equal(scores, before)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 4))
def test_no_repeat_ngram_is_what_it_says(history: list[int], size: int) -> None:
    """A token is banned just when the text with it would hold an n-gram twice."""
    found = apply_no_repeat_ngram(torch.zeros(1, 5), [history], size)[0]
    grams = [tuple(history[at : at + size]) for at in range(len(history) - size + 1)]
    for token in range(5):
        last = tuple([*history, token][-size:])
        assert (found[token] == NEVER) == (len(last) == size and last in grams)


def test_no_repeat_ngram_bans_none_where_it_would_ban_all() -> None:
    """transformers fails here: there is nothing left to draw from."""
    scores = torch.tensor([[0.3, 0.1, 0.2]])
    assert torch.equal(apply_no_repeat_ngram(scores, [[0, 1, 2]], 1), scores)


def test_histories_are_each_rows_own() -> None:
    scores = torch.ones(2, 4)
    found = apply_repetition_penalty(scores, [[0, 1], [3]], 2.0)
    assert found.tolist() == [[0.5, 0.5, 1, 1], [1, 1, 1, 0.5]]
    found = apply_no_repeat_ngram(scores, [[0, 1, 0], [3]], 2)
    assert found.tolist() == [[1, NEVER, 1, 1], [1, 1, 1, 1]]


def _states(histories: Sequence[Sequence[int]], seed: int = 0) -> list[SequenceState]:
    return [SequenceState(n, seed + n, list(ids), prompt_tokens=len(ids)) for n, ids in enumerate(histories)]


ACTIVE = {
    "repetition_penalty": (1.3, theirs.RepetitionPenaltyLogitsProcessor),
    "no_repeat_ngram_size": (2, theirs.NoRepeatNGramLogitsProcessor),
    "temperature": (0.8, theirs.TemperatureLogitsWarper),
    "top_k": (20, theirs.TopKLogitsWarper),
    "top_p": (0.9, theirs.TopPLogitsWarper),
    "min_p": (0.05, theirs.MinPLogitsWarper),
    "typical_p": (0.8, theirs.TypicalLogitsWarper),
}
OFF = SamplingOptions(top_k=0)


@pytest.mark.parametrize("names", [*itertools.combinations(ACTIVE, 2), tuple(ACTIVE)], ids="+".join)
def test_the_order_of_the_filters(names: tuple[str, ...]) -> None:
    """Top-k before temperature, or a penalty after it, leaves other tokens."""
    options = SamplingOptions(**{"top_k": 0, **{name: ACTIVE[name][0] for name in names}})
    scores, history = _random(seed=5), HISTORIES[-1]
    found, expected, ids = scores, scores.clone(), torch.tensor([history] * len(scores))
    for apply in make_filters(options):
        found = apply(found, _states([history] * len(scores)))
    for name in names:
        value, processor = ACTIVE[name]
        expected = processor(value)(ids, expected)
    assert torch.equal(found, expected)


def test_inactive_filters_are_not_built() -> None:
    assert make_filters(OFF) == []
    assert len(make_filters(SamplingOptions())) == 1
    for name, (value, _) in ACTIVE.items():
        assert len(make_filters(SamplingOptions(**{"top_k": 0, name: value}))) == 1
    greedy = {name: value for name, (value, _) in ACTIVE.items()} | {"temperature": 0}
    assert len(make_filters(SamplingOptions(**greedy))) == 2


def _draw_by_definition(scores: Sequence[float], u: float) -> int:
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    total, cumulative = math.fsum(weights), 0.0
    for token, weight in enumerate(weights):
        cumulative += weight / total
        if cumulative > u:
            return token
    return max(token for token, weight in enumerate(weights) if weight > 0)


@pytest.mark.parametrize("kind", SCORES)
def test_draw_is_its_definition(kind: str) -> None:
    """The first token, in order of ids, whose cumulative probability in float64 exceeds u."""
    pick, scores = random.Random(7), SCORES[kind]()
    for row in scores:
        plain = row.tolist()
        for u in (0.0, 1 - 2**-53, *(pick.random() for _ in range(4 if len(plain) > 1000 else 100))):
            assert draw(row, u) == _draw_by_definition(plain, u)


@given(
    st.lists(st.one_of(st.just(NEVER), st.floats(-900, 900, width=32)), min_size=1, max_size=40).filter(
        lambda scores: max(scores) > NEVER
    ),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2**-53), st.just(0.0)),
)
def test_draw_never_takes_what_was_removed(scores: list[float], u: float) -> None:
    """Nor a token whose probability is nothing, however close to 1 the number is."""
    token = draw(torch.tensor(scores), u)
    assert scores[token] - max(scores) > -746


def _chi_square(tokens: Sequence[int], probabilities: Sequence[float]) -> float:
    expected = [len(tokens) * probability for probability in probabilities]
    return sum((tokens.count(n) - e) ** 2 / e for n, e in enumerate(expected))


@pytest.mark.parametrize("along", ["positions", "sequences"])
def test_draws_are_distributed_as_they_should(along: str) -> None:
    scores = _random(rows=1, vocab=12, seed=3, scale=1.0)[0]
    numbers = [uniform(5, n) if along == "positions" else uniform(n, 5) for n in range(6000)]
    tokens = [draw(scores, u) for u in numbers]
    # 11 degrees of freedom: 31.3 is passed once in a thousand times.
    assert _chi_square(tokens, scores.double().softmax(0).tolist()) < 31.3


def test_the_number_is_that_of_seed_and_position() -> None:
    """The position counts what was cut off before; a row's place in the batch does not count."""
    logits, options = _random(rows=3, seed=9), GenerateOptions(top_k=0, seed=0)
    states = [
        SequenceState(index=0, seed=11, ids=[1, 2], prompt_tokens=2),
        SequenceState(index=4, seed=7, ids=[1], prompt_tokens=1, dropped=100),
        SequenceState(index=1, seed=7, ids=[1] * 9, prompt_tokens=1, window=6),
    ]
    expected = [
        draw(row, uniform(seed, position))
        for row, (seed, position) in zip(logits, [(11, 2), (7, 101), (7, 9)], strict=True)
    ]
    sample = make_sampler(options, rows=5)
    assert sample(logits, states) == expected
    assert sample(logits[[2, 0]], [states[2], states[0]]) == [expected[2], expected[0]]


def test_sampling_as_transformers_is_one_multinomial_over_all_rows() -> None:
    logits, options = _random(rows=4, seed=2), GenerateOptions(top_k=0, seed=77, rng="transformers")
    states, sample = _states([[1]] * 4), make_sampler(options, rows=4)
    generator = torch.Generator().manual_seed(77)
    first, second = (
        torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1).tolist() for _ in range(2)
    )
    assert sample(logits, states) == first
    assert sample(logits[[1, 3]], [states[1], states[3]]) == [second[1], second[3]]


def test_greedy_takes_the_first_of_the_best() -> None:
    sample = make_sampler(GenerateOptions(temperature=0, seed=0), rows=2)
    assert sample(torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 5.0]]), _states([[0], [0]])) == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rng", ["default", "transformers"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_what_is_no_number_is_refused(bad: float, rng: str, temperature: float) -> None:
    """Finite weights can overflow: greedy decoding would print token 0 for ever."""
    options = GenerateOptions(temperature=temperature, seed=1, rng=rng)  # type: ignore[arg-type]
    logits = _random(rows=2)
    logits[1, 3] = bad
    with pytest.raises(Gpt2cliError, match="NaN or infinity"):
        make_sampler(options, rows=2)(logits, _states([[0], [0]]))


@pytest.mark.parametrize("top", [0, 1, 5, VOCAB, 100])
def test_logprobs(top: int) -> None:
    logits, tokens = _random(rows=3), [4, 0, 36]
    expected = logits.log_softmax(dim=-1)
    for row, (token, found) in enumerate(zip(tokens, token_logprobs(logits, tokens, top), strict=True)):
        assert found.logprob == float(expected[row, token])
        ordered = sorted(range(VOCAB), key=lambda t, row=row: -float(expected[row, t]))[:top]
        assert [token for token, _ in found.top] == ordered
        assert [value for _, value in found.top] == [float(expected[row, t]) for t in ordered]
