"""What the sampling options did at one step: what each filter removed, and the distribution it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.core.decode import prefill
from gpt2cli.core.model import GPT2
from gpt2cli.core.random import uniform
from gpt2cli.core.sampling import NEVER, SequenceState, check_finite, draw, named_filters
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
    """Of the distribution it left, in nats."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token of the vocabulary at this step."""

    token: int
    rank: int
    """By the model alone; 1 is the likeliest, tokens that tie share the better rank."""
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
    """Of the model's own distribution, in nats."""
    effects: tuple[FilterEffect, ...]
    left: int
    candidates: tuple[Candidate, ...]
    """The likeliest before and after the filters, in the model's own order."""
    actual: Candidate | None
    """The token that stands there in the text, if one does."""
    drawn: Candidate | None
    """The token that the seed draws, if one is given."""
    uniform: float | None
    """The random number in [0, 1) that draws it."""


@torch.inference_mode()
def explain(
    model: GPT2,
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
    if len(ids) >= model.config.n_positions:
        raise PromptTooLong(
            f"the {len(ids)} tokens before the step leave no room in the context of "
            f"{model.config.n_positions}",
            hint="explain an earlier step, or a shorter text",
        )
    logits = prefill(model, model.new_cache(1, len(ids)), ids)  # [1, V]
    check_finite(logits.amax(dim=-1))
    state = SequenceState(index=0, seed=seed or 0, ids=list(ids), prompt_tokens=len(ids))
    return explain_logits(logits, state, options, actual=actual, seed=seed, top=top)


def explain_logits(
    logits: Tensor,
    state: SequenceState,
    options: SamplingOptions,
    *,
    actual: int | None = None,
    seed: int | None = None,
    top: int = 10,
) -> Explanation:
    """`explain` from the logits [1, V] after ``state``'s tokens."""
    own = _probabilities(logits)  # [V], float64
    scores, current = logits, own
    removed_by: dict[int, str] = {}
    effects = []
    for name, filtered in _steps(logits, state, options):
        gone = ((filtered == NEVER) & (scores > NEVER)).squeeze(0)
        after = _probabilities(filtered)
        removed_by.update(dict.fromkeys(gone.nonzero().squeeze(1).tolist(), name))
        effects.append(
            FilterEffect(
                option=name,
                value=getattr(options, name),
                removed=int(gone.sum()),
                left=int((filtered > NEVER).sum()),
                moved=float((after - current).abs().sum() / 2),
                entropy=_entropy(after),
            )
        )
        scores, current = filtered, after

    def candidate(token: int) -> Candidate:
        return Candidate(
            token=token,
            rank=int((own > own[token]).sum()) + 1,
            before=float(own[token]),
            after=float(current[token]),
            removed_by=removed_by.get(token),
        )

    number = None if seed is None or options.greedy else uniform(seed, state.position)
    drawn = None
    if options.greedy:
        drawn = int(scores.argmax())
    elif number is not None:
        drawn = draw(scores[0], number)
    return Explanation(
        position=state.position,
        vocabulary=logits.shape[-1],
        entropy=_entropy(own),
        effects=tuple(effects),
        left=int((scores > NEVER).sum()),
        candidates=tuple(candidate(token) for token in _likeliest(own, current, top)),
        actual=None if actual is None else candidate(actual),
        drawn=None if drawn is None else candidate(drawn),
        uniform=number,
    )


def _steps(logits: Tensor, state: SequenceState, options: SamplingOptions) -> Iterator[tuple[str, Tensor]]:
    """The scores [1, V] after each filter; greedy decoding ends with the likeliest token alone."""
    scores = logits
    for name, apply in named_filters(options):
        scores = apply(scores, [state])
        yield name, scores
    if options.greedy:
        best = scores.argmax(dim=-1, keepdim=True)
        yield "temperature", torch.full_like(scores, NEVER).scatter(-1, best, scores.gather(-1, best))


def _probabilities(scores: Tensor) -> Tensor:
    """scores: [1, V] -> [V], in float64 as a token is drawn"""
    return scores[0].double().softmax(dim=-1)


def _entropy(probabilities: Tensor) -> float:
    return float(torch.special.entr(probabilities).sum())


def _likeliest(before: Tensor, after: Tensor, top: int) -> list[int]:
    """The ``top`` tokens of each distribution [V], in the order of the first; what was removed not of the
    second."""
    count = min(top, before.shape[-1])
    tokens = set(before.topk(count).indices.tolist())
    tokens.update(token for token in after.topk(count).indices.tolist() if after[token] > 0)
    return sorted(tokens, key=lambda token: (-float(before[token]), token))
