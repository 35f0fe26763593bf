"""What the sampling options did at one step: what each filter removed, and the distribution it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2cli.core.backend import Backend, Batch, Floats
from gpt2cli.core.random import gumbel
from gpt2cli.core.sampling import NEVER, check_finite, draw, named_filters, top_k
from gpt2cli.core.scheduler import PREFILL_CHUNK
from gpt2cli.errors import PromptTooLong
from gpt2cli.options import SamplingOptions


@dataclass(frozen=True, slots=True)
class FilterEffect:
    """What one filter did to the distribution that the filters before it had left."""

    option: str
    """The field of `SamplingOptions` that asks for it; ``temperature`` 0 keeps the likeliest token alone."""
    value: float
    removed: int
    """Tokens whose probability it made 0."""
    left: int
    moved: float
    """The probability that changed its token: half the sum of all differences. Of a filter that only
    removes, it is the probability of what was removed."""
    entropy: float
    """The entropy of the distribution it left, in nats."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token of the vocabulary at this step."""

    token: int
    rank: int
    """Its rank by the model alone: 1 is the likeliest, and tokens that tie share the better rank."""
    before: float
    """Its probability by the model alone."""
    after: float
    """Its probability to be drawn."""
    removed_by: str | None
    """The filter that removed it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One step: the token after ``position`` tokens."""

    position: int
    vocabulary: int
    entropy: float
    """The entropy of the model's own distribution, in nats."""
    effects: tuple[FilterEffect, ...]
    left: int
    candidates: tuple[Candidate, ...]
    """The likeliest before and after the filters, in the model's own order."""
    actual: Candidate | None
    """The token that stands there in the text, if one does."""
    drawn: Candidate | None
    """The token that the seed draws, if one is given."""
    noise: float | None
    """The noise of that token: with it, the token's score after the filters is the highest of all."""


def explain(
    backend: Backend,
    ids: Sequence[int],
    options: SamplingOptions,
    *,
    actual: int | None = None,
    seed: int | None = None,
    top: int = 10,
) -> Explanation:
    """Explain how the token after ``ids`` (at least one) is drawn, by the filters that would draw it.

    ``actual`` is the token that follows in the text, ``seed`` that of the sequence (with the default
    random numbers), ``top`` how many of the likeliest tokens are listed. Raises `PromptTooLong` where
    the context has no room for the step, `ModelFileError` for a model that computes no numbers.
    """
    config = backend.config
    if len(ids) >= config.n_positions:
        raise PromptTooLong(
            f"the {len(ids)} tokens before the step leave no room in the context of {config.n_positions}",
            hint="explain an earlier step, or a shorter text",
        )
    logits = _logits_after(backend, ids)
    check_finite(logits)
    return explain_logits(logits, ids, options, actual=actual, seed=seed, top=top)


def _logits_after(backend: Backend, ids: Sequence[int]) -> Floats:
    """[V]"""
    slot = backend.new_slot()
    try:
        for begin in range(0, len(ids), PREFILL_CHUNK):
            logits = backend.forward(Batch.of([(slot, begin, ids[begin : begin + PREFILL_CHUNK])]))
    finally:
        backend.free_slot(slot)
    last: Floats = logits[0]
    return last


def explain_logits(
    logits: Floats,
    ids: Sequence[int],
    options: SamplingOptions,
    *,
    actual: int | None = None,
    seed: int | None = None,
    top: int = 10,
) -> Explanation:
    """`explain` from the logits [V] after the tokens ``ids``."""
    own = _probabilities(logits)
    scores, current = logits, own
    removed_by: dict[int, str] = {}
    effects = []
    for name, filtered in _steps(logits, ids, options):
        gone = np.flatnonzero((filtered == NEVER) & (scores > NEVER))
        after = _probabilities(filtered)
        removed_by.update(dict.fromkeys(gone.tolist(), name))
        effects.append(
            FilterEffect(
                option=name,
                value=getattr(options, name),
                removed=len(gone),
                left=int(np.count_nonzero(filtered > NEVER)),
                moved=float(np.abs(after - current).sum() / 2),
                entropy=_entropy(after),
            )
        )
        scores, current = filtered, after

    def candidate(token: int) -> Candidate:
        return Candidate(
            token=token,
            rank=int(np.count_nonzero(own > own[token])) + 1,
            before=float(own[token]),
            after=float(current[token]),
            removed_by=removed_by.get(token),
        )

    drawn, noise = None, None
    if options.greedy:
        drawn = int(scores.argmax())
    elif seed is not None:
        drawn = draw(scores, seed, len(ids))
        noise = float(gumbel(seed, len(ids), [drawn])[0])
    return Explanation(
        position=len(ids),
        vocabulary=len(logits),
        entropy=_entropy(own),
        effects=tuple(effects),
        left=int(np.count_nonzero(scores > NEVER)),
        candidates=tuple(candidate(token) for token in _likeliest(logits, scores, top)),
        actual=None if actual is None else candidate(actual),
        drawn=None if drawn is None else candidate(drawn),
        noise=noise,
    )


def _steps(logits: Floats, ids: Sequence[int], options: SamplingOptions) -> Iterator[tuple[str, Floats]]:
    """The scores [V] after each filter; greedy decoding ends with the likeliest token alone."""
    scores = logits
    for name, apply in named_filters(options):
        scores = apply(scores, ids)
        yield name, scores
    if options.greedy:
        alone = np.full_like(scores, NEVER)
        best = scores.argmax()
        alone[best] = scores[best]
        yield "temperature", alone


def _probabilities(scores: Floats) -> NDArray[np.float64]:
    """scores: [V] -> [V], in float64 as a token is drawn"""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def _entropy(probabilities: NDArray[np.float64]) -> float:
    some = probabilities[probabilities > 0]
    # Not -0 for a single token.
    return float((some * -np.log(some)).sum()) + 0.0


def _likeliest(before: Floats, after: Floats, top: int) -> list[int]:
    """The ``top`` tokens by the scores [V] before and after, in the order of the first; none that was
    removed."""
    tokens = _best(before, top) | {token for token in _best(after, top) if after[token] > NEVER}
    return sorted(tokens, key=lambda token: (-float(before[token]), token))


def _best(scores: Floats, top: int) -> set[int]:
    kept = top_k(scores, top)
    return set(kept[np.argsort(-scores[kept], kind="stable")][:top].tolist())
