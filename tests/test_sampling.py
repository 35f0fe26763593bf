"""The filters against transformers' processors, and the draw against its definition."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import series
from torch import Tensor
from transformers.generation import logits_process as theirs

from gpt2cli.core.backend import Floats
from gpt2cli.core.random import gumbel
from gpt2cli.core.sampling import (
    NEVER,
    Sampler,
    TransformersDraw,
    apply_logit_bias,
    apply_min_p,
    apply_no_repeat_ngram,
    apply_presence_frequency,
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    apply_typical,
    draw,
    named_filters,
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
    "a whole vocabulary, flat": lambda: _random(rows=2, vocab=50257, scale=0.5),
    "a whole vocabulary with ties": lambda: _random(rows=2, vocab=50257, scale=4.0).round(),
    "a whole vocabulary with -inf": lambda: _with_never(_random(rows=2, vocab=50257, scale=4.0)),
}

FILTERS: list[tuple[Callable[[Floats, Any], Floats], type[theirs.LogitsProcessor], tuple[float, ...]]] = [
    (apply_temperature, theirs.TemperatureLogitsWarper, (1e-3, 0.7, 1.3, 100.0)),
    (apply_top_k, theirs.TopKLogitsWarper, (1, 2, 5, 37, 60, 5000, 20000)),
    (apply_top_p, theirs.TopPLogitsWarper, (1e-6, 0.1, 0.5, 0.9, 0.999)),
    (apply_min_p, theirs.MinPLogitsWarper, (0.01, 0.5, 1.0)),
    (apply_typical, theirs.TypicalLogitsWarper, (0.1, 0.5, 0.95)),
]


def _rows(apply: Callable[[Floats], Floats], scores: Tensor) -> Tensor:
    """``apply`` to each row of scores [B, V]; it must leave its argument as it was."""
    before = scores.clone()
    found = torch.stack([torch.from_numpy(apply(row)) for row in scores.numpy()])
    assert torch.equal(scores, before)
    assert found.dtype == torch.float32
    return found


@pytest.fixture(autouse=True)
def _ties_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's sort has tokens that tie in any order; the stable one is the definition that we keep."""
    monkeypatch.setattr(torch, "sort", functools.partial(torch.sort, stable=True))


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
    ours: Callable[[Floats, Any], Floats], processor: type[theirs.LogitsProcessor], value: float, kind: str
) -> None:
    scores = SCORES[kind]()
    found, ids = _rows(lambda row: ours(row, value), scores), torch.zeros(len(scores), 1, dtype=torch.long)
    expected = processor(value)(ids, scores)  # type: ignore[call-arg]
    if ours in (apply_typical, apply_top_p) and scores.shape[1] > 1000:
        ranked = _distance_from_entropy(scores) if ours is apply_typical else -scores.double()
        assert _differ_at_the_border(ranked, found, expected) <= 2
    else:
        assert torch.equal(found, expected)
    assert bool((found > NEVER).any(dim=-1).all())


def _distance_from_entropy(scores: Tensor) -> Tensor:
    logprobs = scores.double().log_softmax(-1)
    return (-logprobs - torch.special.entr(logprobs.exp()).sum(-1, keepdim=True)).abs()


def _differ_at_the_border(ranked: Tensor, found: Tensor, expected: Tensor) -> int:
    """How many tokens only one of two keeps: in fp32 a sum of 50,257 numbers depends on their order.

    In the order of ``ranked`` they must come right after what both keep.
    """
    rank = ranked.argsort(dim=-1).argsort(dim=-1)
    last = rank.masked_fill((found == NEVER) | (expected == NEVER), 0).amax(dim=-1, keepdim=True)
    differ = found != expected
    assert not bool((differ & ((rank - last).abs() > 3)).any())
    return int(differ.sum())


HISTORIES = [[0], [1, 2, 1, 2, 1], [5] * 9, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 1, 4]]


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: f"{len(h)} tokens")
@pytest.mark.parametrize("kind", [kind for kind in SCORES if SCORES[kind]().shape[1] >= 10])
@pytest.mark.parametrize("penalty", [0.5, 1.2, 100.0])
def test_repetition_penalty(history: list[int], kind: str, penalty: float) -> None:
    """Negative scores are multiplied, positive ones divided; a token that comes twice counts once."""
    scores = SCORES[kind]()
    ids = torch.tensor([history] * len(scores))
    found = _rows(lambda row: apply_repetition_penalty(row, history, penalty), scores)
    assert torch.equal(found, theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone()))


@pytest.mark.parametrize("history", HISTORIES, ids=lambda h: f"{len(h)} tokens")
@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_no_repeat_ngram(history: list[int], size: int) -> None:
    scores = _random()
    ids = torch.tensor([history] * len(scores))
    found = _rows(lambda row: apply_no_repeat_ngram(row, history, size), scores)
    assert torch.equal(found, theirs.NoRepeatNGramLogitsProcessor(size)(ids, scores.clone()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 4))
def test_no_repeat_ngram_is_what_it_says(history: list[int], size: int) -> None:
    """A token is banned just when the text with it would hold an n-gram twice."""
    found = apply_no_repeat_ngram(np.zeros(5, np.float32), history, size)
    grams = [tuple(history[at : at + size]) for at in range(len(history) - size + 1)]
    for token in range(5):
        last = tuple([*history, token][-size:])
        assert (found[token] == NEVER) == (len(last) == size and last in grams)


def test_no_repeat_ngram_bans_none_where_it_would_ban_all() -> None:
    """transformers fails here: there is nothing left to draw from."""
    scores = np.array([0.3, 0.1, 0.2], np.float32)
    assert apply_no_repeat_ngram(scores, [0, 1, 2], 1).tolist() == scores.tolist()


@pytest.mark.parametrize("presence", [0.0, 0.7, -1.5])
@pytest.mark.parametrize("frequency", [0.0, 0.4, -2.0])
def test_presence_and_frequency(presence: float, frequency: float) -> None:
    """OpenAI's definition: mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    generated, scores = [3, 4, 3, 3, 9], _random(rows=1)[0].numpy()
    before = scores.copy()
    found = apply_presence_frequency(scores, generated, presence, frequency)
    for token in range(VOCAB):
        count = generated.count(token)
        expected = float(scores[token]) - count * frequency - (count > 0) * presence
        assert found[token] == pytest.approx(expected, abs=1e-5)
    assert (scores == before).all() and found.dtype == np.float32
    assert apply_presence_frequency(scores, [], presence, frequency) is scores


def test_penalties_count_the_continuation_only() -> None:
    """A token of the prompt is no repetition, as in vLLM; the prompt's length says where it ends."""
    options, row = (
        GenerateOptions(top_k=0, presence_penalty=2, frequency_penalty=1),
        _random(rows=1)[0].numpy(),
    )
    filtered = Sampler(options, prompt=3).filtered(row, [5, 6, 7, 8, 8])
    expected = row.copy()
    expected[8] -= 4
    assert filtered.tolist() == expected.tolist()
    assert Sampler(options, prompt=5).filtered(row, [5, 6, 7, 8, 8]).tolist() == row.tolist()


def test_a_bias_comes_before_the_penalties() -> None:
    """As in vLLM: what was made likelier is then divided, and the rest is taken from what is left."""
    options = GenerateOptions(
        top_k=0, logit_bias=((2, 7.5), (4, -100)), repetition_penalty=2.0, frequency_penalty=1.0
    )
    names = [name for name, _ in named_filters(options, 1)]
    assert names == ["logit_bias", "repetition_penalty", "frequency_penalty"]
    row = np.array([0.0, 1.0, 2.5, 3.0, 4.0], np.float32)
    assert Sampler(options, 1).filtered(row, [1, 2]).tolist() == [0.0, 0.5, 4.0, 3.0, -96.0]
    assert apply_logit_bias(row, np.array([0]), np.array([2.0], np.float32)).tolist() == [2, 1, 2.5, 3, 4]
    greedy = GenerateOptions(temperature=0, logit_bias=((0, 100.0),))
    assert Sampler(greedy)(row, [1], 0, 1) == 0


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


def _options(names: Sequence[str]) -> SamplingOptions:
    return SamplingOptions(**{"top_k": 0, **{name: ACTIVE[name][0] for name in names}})  # type: ignore[arg-type]


COMBINED = [*itertools.combinations(ACTIVE, 2), tuple(ACTIVE)]


@pytest.mark.parametrize("names", COMBINED, ids="+".join)
def test_the_order_of_the_filters(names: tuple[str, ...]) -> None:
    """Top-k before temperature, or a penalty after it, leaves other tokens."""
    options, scores, history = _options(names), _random(seed=5), HISTORIES[-1]
    expected, ids = scores.clone(), torch.tensor([history] * len(scores))
    for name in names:
        value, processor = ACTIVE[name]
        expected = processor(value)(ids, expected)

    def one_by_one(row: Floats) -> Floats:
        for _, apply in named_filters(options):
            row = apply(row, history)
        return row

    assert torch.equal(_rows(one_by_one, scores), expected)
    assert torch.equal(_rows(lambda row: Sampler(options).filtered(row, history), scores), expected)


def test_inactive_filters_are_not_built() -> None:
    assert named_filters(OFF) == []
    assert [name for name, _ in named_filters(SamplingOptions())] == ["top_k"]
    for name in ACTIVE:
        assert [built for built, _ in named_filters(_options([name]))] == [name]
    greedy = {name: value for name, (value, _) in ACTIVE.items()} | {"temperature": 0}
    found = [name for name, _ in named_filters(SamplingOptions(**greedy))]  # type: ignore[arg-type]
    assert found == ["repetition_penalty", "no_repeat_ngram_size"]


@pytest.mark.parametrize("names", [(), *((name,) for name in ACTIVE), *COMBINED], ids="+".join)
@pytest.mark.parametrize("kind", ["random", "ties", "two tokens", "a whole vocabulary"])
def test_what_is_removed_is_not_needed(names: tuple[str, ...], kind: str) -> None:
    """The sampler looks at the best candidates; the same token comes from all filtered scores."""
    options, history = _options(names), [0, 1, 0, 1, 0]
    for place, row in enumerate(SCORES[kind]().numpy()):
        scores = row
        for _, apply in named_filters(options):
            scores = apply(scores, history)
        token = Sampler(options)(row, history, place, 77)
        assert token == draw(scores, place, 77)
        kept = np.flatnonzero(scores > NEVER)
        assert token == kept[np.argmax(scores[kept].astype(np.float64) + gumbel(place, 77, kept))]


@given(
    st.lists(st.one_of(st.just(NEVER), st.floats(-900, 900, width=32)), min_size=1, max_size=40).filter(
        lambda scores: max(scores) > NEVER
    ),
    st.integers(0, 2**32 - 1),
)
def test_draw_never_takes_what_was_removed(scores: list[float], seed: int) -> None:
    """Nor a token that is beyond the reach of any noise: -ln(53 ln 2) to 53 ln 2."""
    token = draw(np.array(scores, np.float32), seed, 0)
    assert scores[token] > max(scores) - 41


DRAWS, BY_THE_SAMPLER = series(100_000, 30_000), series(100_000, 2_000)


def _critical(degrees: int) -> float:
    """What a chi-square statistic passes about once in ten thousand times (Wilson and Hilferty 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("along", ["positions", "seeds"])
@pytest.mark.parametrize("names", [(), *((name,) for name in ACTIVE), tuple(ACTIVE)], ids="+".join)
def test_draws_are_distributed_as_they_should(names: tuple[str, ...], along: str) -> None:
    """A chi-square test over many draws, with and without each filter.

    The sampler draws the first ones from the logits; the others are drawn from the scores that it filters.
    """
    options, history, logits = _options(names), [3, 4, 3, 4, 5], _random(rows=1, seed=3, scale=1.0)[0].numpy()
    sample = Sampler(options)
    filtered = sample.filtered(logits, history)
    counts = np.zeros(VOCAB, np.int64)
    for n in range(DRAWS):
        seed, position = (5, n) if along == "positions" else (n, 5)
        by_the_sampler = n < BY_THE_SAMPLER
        counts[
            sample(logits, history, seed, position) if by_the_sampler else draw(filtered, seed, position)
        ] += 1
    probabilities = torch.from_numpy(filtered).double().softmax(0).numpy()
    assert not counts[probabilities == 0].any()
    expected = DRAWS * probabilities[probabilities > 0]
    statistic = float(((counts[probabilities > 0] - expected) ** 2 / expected).sum())
    assert statistic < _critical(len(expected) - 1)


def test_the_noise_draws_from_the_softmax() -> None:
    """As above, in little: 100,000 draws at once, from the noise of many positions."""
    scores = _random(rows=1, vocab=12, seed=3, scale=1.0)[0].numpy()
    noise = np.stack([gumbel(5, n, np.arange(12)) for n in range(20_000)])
    counts = np.bincount((noise + scores).argmax(axis=1), minlength=12)
    expected = 20_000 * torch.from_numpy(scores).double().softmax(0).numpy()
    # 11 degrees of freedom: 31.3 is passed once in a thousand times.
    assert float(((counts - expected) ** 2 / expected).sum()) < 31.3


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1)], ids=["positions", "seeds", "both"])
def test_draws_are_independent(step: tuple[int, int]) -> None:
    """Of neighbouring positions, and of the rows of -n: a chi-square test of all pairs of tokens."""
    seeds, positions = step
    scores = np.log(np.array([0.1, 0.2, 0.3, 0.4]))

    def tokens(by: int) -> Any:
        noise = [
            gumbel(7 + n // 100 + seeds * by, n % 100 * 2 + positions * by, range(4)) for n in range(10_000)
        ]
        return (np.stack(noise) + scores).argmax(axis=1)

    pairs = np.bincount(4 * tokens(0) + tokens(1), minlength=16).reshape(4, 4)
    expected = np.outer(pairs.sum(axis=1), pairs.sum(axis=0)) / pairs.sum()
    # 9 degrees of freedom: 27.9 is passed once in a thousand times.
    assert float(((pairs - expected) ** 2 / expected).sum()) < 27.9


def test_models_that_nearly_agree_draw_the_same() -> None:
    """What the noise is keyed by the token for: another kept set, or a small change, moves few draws."""
    scores = _random(rows=1, vocab=1000, seed=3)[0].numpy()
    near = scores + 0.05 * _random(rows=1, vocab=1000, seed=4, scale=1.0)[0].numpy()
    ours, theirs_too = Sampler(SamplingOptions(top_k=50)), Sampler(SamplingOptions(top_k=60))
    same = sum(ours(scores, [], 1, n) == theirs_too(near, [], 1, n) for n in range(1000))
    assert same > 850


def test_sampling_as_transformers_is_one_multinomial_over_all_rows() -> None:
    scores = _random(rows=4, seed=2)
    generator = torch.Generator().manual_seed(77)
    first, second, third = (
        torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1).tolist() for _ in range(3)
    )
    pick, rows = TransformersDraw(77, 4), [*scores.numpy()]
    assert pick(rows, [0, 1, 2, 3]) == first
    assert pick([rows[1], rows[3]], [1, 3]) == [second[1], second[3]]
    assert pick([rows[3], rows[1]], [3, 1]) == [third[3], third[1]]


def test_greedy_takes_the_first_of_the_best() -> None:
    sample = Sampler(SamplingOptions(temperature=0))
    for row, token in (([1.0, 3.0, 3.0], 1), ([5.0, 0.0, 5.0], 0)):
        assert sample(np.array(row, np.float32), [0], 0, 1) == token


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1, 0.5])
@pytest.mark.parametrize("top_k", [0, 2, 50])
def test_what_is_no_number_is_refused(bad: float, temperature: float, top_k: int) -> None:
    """Finite weights can overflow: greedy decoding would print token 0 for ever."""
    sample = Sampler(SamplingOptions(temperature=temperature, top_k=top_k))
    logits = _random(rows=1)[0].numpy()
    logits[3] = bad
    with pytest.raises(Gpt2cliError, match="NaN or infinity"):
        sample(logits, [0], 0, 1)
    with pytest.raises(Gpt2cliError, match="NaN or infinity"):
        sample.filtered(logits, [0])
    with pytest.raises(Gpt2cliError, match="NaN or infinity"):
        sample(np.full(VOCAB, NEVER, np.float32), [0], 0, 1)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("top_k", [0, 50, 5])
def test_a_temperature_that_makes_logits_overflow_is_refused(top_k: int) -> None:
    logits = np.array([1e37, 2e37, *([0.0] * 10)], np.float32)
    with pytest.raises(Gpt2cliError, match="NaN or infinity"):
        Sampler(SamplingOptions(temperature=1e-3, top_k=top_k))(logits, [0], 0, 1)


@pytest.mark.parametrize("top", [0, 1, 5, VOCAB, 100])
def test_logprobs(top: int) -> None:
    for logits, token in zip(_random(rows=3), (4, 0, 36), strict=True):
        expected = logits.double().log_softmax(dim=-1).tolist()
        found = token_logprobs(logits.numpy(), token, top)
        assert found.logprob == pytest.approx(expected[token], abs=1e-12)
        ordered = sorted(range(VOCAB), key=lambda t, expected=expected: -expected[t])[:top]
        assert [token for token, _ in found.top] == ordered
        assert [value for _, value in found.top] == pytest.approx([expected[t] for t in ordered], abs=1e-12)


def test_logprobs_of_tokens_that_tie() -> None:
    """The first by id, and no more than were asked for."""
    found = token_logprobs(np.zeros(9, np.float32), 3, 4)
    assert [token for token, _ in found.top] == [0, 1, 2, 3]
