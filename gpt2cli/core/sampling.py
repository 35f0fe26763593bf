"""From logits to the next token: pure ``apply_*`` filters, composed once by `make_sampler`.

Scores are [B, V] fp32; a filter sets what it removes to minus infinity. Each filter computes what
transformers' logits processor of the same name computes, in the same order of operations, so that the
same numbers come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpt2cli.core.random import uniform
from gpt2cli.errors import ModelFileError
from gpt2cli.options import GenerateOptions, SamplingOptions

NEVER = float("-inf")

NUCLEUS = 1024
"""The likeliest tokens that top-p looks at before it sorts a large vocabulary."""


@dataclass(slots=True)
class SequenceState:
    """One sequence while it grows.

    ``ids`` are the prompt (what was kept of it) and what was generated; ``dropped`` the prompt tokens
    cut off before them; ``window`` the index in ``ids`` where the context now begins.
    """

    index: int
    seed: int
    ids: list[int]
    prompt_tokens: int
    dropped: int = 0
    window: int = 0
    finish_reason: str | None = None

    @property
    def position(self) -> int:
        """The logical position of the next token in the whole text, never reset."""
        return self.dropped + len(self.ids)

    @property
    def new_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.ids) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural) of a token and of the likeliest ones, before any filter."""

    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=())


Filter = Callable[[Tensor, Sequence[SequenceState]], Tensor]
Sampler = Callable[[Tensor, Sequence[SequenceState]], list[int]]


def apply_repetition_penalty(scores: Tensor, histories: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make every token of a row's history less likely (``penalty`` > 1): scores [B, V]."""
    scores = scores.clone()
    for row, history in enumerate(histories):
        seen = torch.tensor(history, device=scores.device)
        score = scores[row, seen]
        scores[row, seen] = torch.where(score < 0, score * penalty, score / penalty)
    return scores


def apply_no_repeat_ngram(scores: Tensor, histories: Sequence[Sequence[int]], size: int) -> Tensor:
    """Ban what would repeat a sequence of ``size`` tokens; where that is every token, ban none."""
    scores = scores.clone()
    for row, history in enumerate(histories):
        banned = _banned_tokens(history, size)
        if banned and len(banned) < scores.shape[1]:
            scores[row, torch.tensor(sorted(banned), device=scores.device)] = NEVER
    return scores


def _banned_tokens(history: Sequence[int], size: int) -> set[int]:
    """The tokens that have followed the last ``size - 1`` tokens before."""
    if len(history) + 1 < size:
        return set()
    last = list(history[len(history) - size + 1 :])
    starts = range(len(history) - size + 1)
    return {history[at + size - 1] for at in starts if list(history[at : at + size - 1]) == last}


def apply_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Flatten (above 1) or sharpen (below 1) the distribution."""
    return scores / temperature


def apply_top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the ``k`` best of each row, and what ties with the last of them."""
    worst_kept = torch.topk(scores, min(k, scores.shape[-1]))[0][..., -1, None]
    return scores.masked_fill(scores < worst_kept, NEVER)


def apply_top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches ``p``; at least one."""
    if scores.shape[-1] > 4 * NUCLEUS and (kept := _nucleus(scores, p)) is not None:
        return kept
    ordered, order = torch.sort(scores, descending=False)
    remove = ordered.softmax(dim=-1).cumsum(dim=-1) <= (1 - p)
    remove[..., -1] = False
    return scores.masked_fill(remove.scatter(1, order, remove), NEVER)


def _nucleus(scores: Tensor, p: float) -> Tensor | None:
    """`apply_top_p` without sorting the vocabulary; None where a row's nucleus has too many tokens for it."""
    best, ids = torch.topk(scores, NUCLEUS)
    probabilities = (best - scores.logsumexp(dim=-1, keepdim=True)).exp()
    cumulative = probabilities.cumsum(dim=-1)
    if not bool((cumulative[:, -1] > p).all()):
        return None
    # A token stays while those before it do not reach p.
    best = best.masked_fill(cumulative - probabilities >= p, NEVER)
    best[:, 0] = scores.amax(dim=-1)
    return torch.full_like(scores, NEVER).scatter(1, ids, best)


def apply_min_p(scores: Tensor, p: float) -> Tensor:
    """Remove tokens less likely than ``p`` times the likeliest one."""
    probabilities = torch.softmax(scores, dim=-1)
    best, index = probabilities.max(dim=-1, keepdim=True)
    remove = (probabilities < p * best).scatter(-1, index, False)
    return scores.masked_fill(remove, NEVER)


def apply_typical(scores: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is closest to the entropy, up to a probability of ``mass``."""
    logprobs = torch.log_softmax(scores, dim=-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    distance, order = torch.sort(torch.abs(-logprobs - entropy), descending=False)
    cumulative = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=1).clamp_(max=scores.shape[-1] - 1)
    remove = distance > distance.gather(1, last.view(-1, 1))
    remove[..., :1] = False
    return scores.masked_fill(remove.scatter(1, order, remove), NEVER)


def make_filters(options: SamplingOptions) -> list[Filter]:
    """The active filters in transformers' order; greedy decoding has only those on repetition."""
    return [apply for _, apply in named_filters(options)]


def named_filters(options: SamplingOptions) -> list[tuple[str, Filter]]:
    """The filters of `make_filters`, each with the option that asks for it."""
    filters: list[tuple[str, Filter]] = []

    def add(name: str, apply: Filter) -> None:
        filters.append((name, apply))

    if options.repetition_penalty != 1:
        penalty = options.repetition_penalty
        add("repetition_penalty", lambda s, states: apply_repetition_penalty(s, _histories(states), penalty))
    if options.no_repeat_ngram_size > 0:
        size = options.no_repeat_ngram_size
        add("no_repeat_ngram_size", lambda s, states: apply_no_repeat_ngram(s, _histories(states), size))
    if options.greedy:
        return filters
    if options.temperature != 1:
        add("temperature", lambda s, _: apply_temperature(s, options.temperature))
    if options.top_k > 0:
        add("top_k", lambda s, _: apply_top_k(s, options.top_k))
    if options.top_p < 1:
        add("top_p", lambda s, _: apply_top_p(s, options.top_p))
    if options.min_p > 0:
        add("min_p", lambda s, _: apply_min_p(s, options.min_p))
    if options.typical_p < 1:
        add("typical_p", lambda s, _: apply_typical(s, options.typical_p))
    return filters


def make_sampler(options: GenerateOptions, rows: int) -> Sampler:
    """A function from logits [B, V] and the B active states to B token ids.

    ``rows`` is the number of sequences at the start: with ``rng`` ``transformers`` finished ones keep
    their place in the draw. ``options.seed`` must be set for that. The function raises `ModelFileError`
    for logits that are no numbers.
    """
    if options.greedy:
        return _greedy(make_filters(options))
    if options.rng == "transformers":
        assert options.seed is not None
        generator = torch.Generator().manual_seed(options.seed)
        return _full(
            make_filters(options),
            lambda scores, states: _draw_as_transformers(scores, states, rows, generator),
        )
    full = _full(make_filters(options), _draw_rows)
    return _among_top_k(options, full) if options.top_k else full


def _greedy(filters: Sequence[Filter]) -> Sampler:
    @torch.inference_mode()
    def sample(logits: Tensor, states: Sequence[SequenceState]) -> list[int]:
        for apply in filters:
            logits = apply(logits, states)
        best, tokens = logits.max(dim=-1)
        check_finite(best)
        return [int(token) for token in tokens.tolist()]

    return sample


def _full(filters: Sequence[Filter], choose: Sampler) -> Sampler:
    """Draw from the whole vocabulary."""

    @torch.inference_mode()
    def sample(logits: Tensor, states: Sequence[SequenceState]) -> list[int]:
        check_finite(logits.amax(dim=-1))
        for apply in filters:
            logits = apply(logits, states)
        return choose(logits, states)

    return sample


def _among_top_k(options: GenerateOptions, full: Sampler) -> Sampler:
    """The same tokens as ``full`` draws, without touching those that top-k removes."""
    k = options.top_k
    before = make_filters(replace(options, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0))
    after = make_filters(
        replace(options, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=1.0, top_k=0)
    )

    @torch.inference_mode()
    def sample(logits: Tensor, states: Sequence[SequenceState]) -> list[int]:
        if k >= logits.shape[-1]:
            return full(logits, states)
        scores = logits
        for apply in before:
            scores = apply(scores, states)
        best, ids = torch.topk(scores, k + 1)
        check_finite(best[:, 0])
        if bool((best[:, k - 1] == best[:, k]).any()):
            # What ties with the last one kept is kept too.
            return full(logits, states)
        # scores, ids: [B, k], in the order of ids
        ids, order = ids[:, :k].sort()
        scores = best.gather(1, order)
        for apply in after:
            scores = apply(scores, states)
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(cumulative, _uniforms(states, cumulative), right=True)
        return [int(token) for token in ids.gather(1, drawn).squeeze(1).tolist()]

    return sample


def _uniforms(states: Sequence[SequenceState], cumulative: Tensor) -> Tensor:
    """The random number of each row, [B, 1], below the row's last cumulative probability."""
    numbers = [[uniform(state.seed, state.position)] for state in states]
    # The sum may end a rounding error below 1.
    return torch.tensor(numbers, dtype=torch.float64, device=cumulative.device).minimum(
        cumulative[:, -1:] * (1 - 2**-53)
    )


def check_finite(best: Tensor) -> None:
    """Raise `ModelFileError` for what nothing can be drawn from: weights can be finite and overflow.

    ``best`` [B] is the highest score of each row; a NaN counts as the highest.
    """
    if not all(math.isfinite(score) for score in best.tolist()):
        raise ModelFileError(
            "the model computes NaN or infinity",
            hint="its weights are damaged, or too large for the precision; try --precision fp32",
        )


def _draw_rows(scores: Tensor, states: Sequence[SequenceState]) -> list[int]:
    return [draw(row, uniform(state.seed, state.position)) for row, state in zip(scores, states, strict=True)]


def draw(scores: Tensor, u: float) -> int:
    """The first token, in order of ids, whose cumulative probability exceeds ``u``: scores [V]."""
    kept = torch.nonzero(scores > NEVER).squeeze(1)
    cumulative = scores[kept].double().softmax(dim=0).cumsum(dim=0)
    # The sum may end a rounding error below 1.
    u = min(u, float(cumulative[-1]) * (1 - 2**-53))
    return int(kept[torch.searchsorted(cumulative, u, right=True)])


def _draw_as_transformers(
    scores: Tensor, states: Sequence[SequenceState], rows: int, generator: torch.Generator
) -> list[int]:
    """One ``torch.multinomial`` over the full vocabulary of all rows."""
    probabilities = scores.softmax(dim=-1).cpu()
    if len(states) < rows:
        # What a finished row draws does not matter, only that it draws.
        padded = torch.ones(rows, scores.shape[-1])
        padded[[state.index for state in states]] = probabilities
        drawn = torch.multinomial(padded, num_samples=1, generator=generator).squeeze(1).tolist()
        return [drawn[state.index] for state in states]
    return [int(t) for t in torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)]


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """For each row of logits [B, V]: the log-probability of its token, and of the ``top`` likeliest."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs[torch.arange(len(tokens)), list(tokens)].tolist()
    values, ids = torch.topk(logprobs, min(top, logits.shape[-1]), dim=-1)
    return [
        TokenLogprobs(logprob, tuple(zip(row_ids, row_values, strict=True)))
        for logprob, row_ids, row_values in zip(chosen, ids.tolist(), values.tolist(), strict=True)
    ]


def _histories(states: Sequence[SequenceState]) -> list[list[int]]:
    return [state.ids for state in states]
