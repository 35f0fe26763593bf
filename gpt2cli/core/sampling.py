"""From the logits of one row to its next token: pure ``apply_*`` filters, composed once by `Sampler`.

Scores are [V] fp32; a filter sets what it removes to minus infinity. Each filter computes what
transformers' logits processor of the same name computes, in the same order of operations and in fp32
where a comparison decides what is kept, so that the same tokens are left.

A token is drawn by Gumbel noise (`core/random.py`): it is the kept one whose score and noise have the
highest sum. That is a draw from the softmax of the scores, and only the kept tokens need noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpt2cli.core.backend import Floats
from gpt2cli.core.random import gumbel, gumbel_of_all
from gpt2cli.errors import ModelFileError
from gpt2cli.options import GenerateOptions, SamplingOptions

if TYPE_CHECKING:
    import torch

NEVER = float("-inf")

NUCLEUS = 1024
"""The likeliest tokens that top-p looks at before it sorts a large vocabulary."""
BLOCK = 128
"""The best tokens of a large vocabulary are sought among the maxima of so many at a time."""

Ids = NDArray[np.intp]
"""Indices of scores, ascending."""
Filter = Callable[[Floats, Sequence[int]], Floats]
"""From scores [V] and the tokens of the text so far to scores [V]."""
Keep = Callable[[Floats], Ids]
"""The tokens that a filter keeps."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural) of a token and of the likeliest ones, before any filter."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def apply_repetition_penalty(scores: Floats, history: Sequence[int], penalty: float) -> Floats:
    """Make every token of the history less likely (``penalty`` > 1)."""
    scores, seen = scores.copy(), np.asarray(history)
    score = scores[seen]
    scores[seen] = np.where(score < 0, score * penalty, score / penalty)
    return scores


def apply_logit_bias(scores: Floats, tokens: Ids, added: Floats) -> Floats:
    """Add a number to the score of each of ``tokens``, as OpenAI's ``logit_bias`` does."""
    scores = scores.copy()
    scores[tokens] += added
    return scores


def apply_presence_frequency(
    scores: Floats, generated: Sequence[int], presence: float, frequency: float
) -> Floats:
    """Take ``presence`` from every token that was ``generated``, and ``frequency`` for each time it was.

    These are OpenAI's penalties. They count what the continuation has, not the prompt, as vLLM does.
    """
    if not generated:
        return scores
    seen, counts = np.unique(np.asarray(generated), return_counts=True)
    scores = scores.copy()
    scores[seen] -= (presence + frequency * counts).astype(np.float32)
    return scores


def apply_no_repeat_ngram(scores: Floats, history: Sequence[int], size: int) -> Floats:
    """Ban what would repeat a sequence of ``size`` tokens; where that is every token, ban none."""
    scores, ids = scores.copy(), np.asarray(history)
    if len(ids) >= size:
        last = ids[len(ids) - size + 1 :]
        repeats = (sliding_window_view(ids, size)[:, :-1] == last).all(axis=1)
        banned = np.unique(ids[size - 1 :][repeats])
        if len(banned) < len(scores):
            scores[banned] = NEVER
    return scores


def apply_temperature(scores: Floats, temperature: float) -> Floats:
    """Flatten (above 1) or sharpen (below 1) the distribution."""
    return scores / np.float32(temperature)


def apply_top_k(scores: Floats, k: int) -> Floats:
    """Keep the ``k`` best, and what ties with the last of them."""
    return _only(scores, top_k(scores, k))


def apply_top_p(scores: Floats, p: float) -> Floats:
    """Keep the smallest set of tokens whose probability reaches ``p``; at least one."""
    return _only(scores, top_p(scores, p))


def apply_min_p(scores: Floats, p: float) -> Floats:
    """Remove tokens less likely than ``p`` times the likeliest one."""
    return _only(scores, min_p(scores, p))


def apply_typical(scores: Floats, mass: float) -> Floats:
    """Keep the tokens whose information is closest to the entropy, up to a probability of ``mass``."""
    return _only(scores, typical(scores, mass))


def _only(scores: Floats, kept: Ids) -> Floats:
    left = np.full_like(scores, NEVER)
    left[kept] = scores[kept]
    return left


def top_k(scores: Floats, k: int) -> Ids:
    """The tokens that `apply_top_k` keeps."""
    if k >= len(scores):
        return np.arange(len(scores))
    width = min(BLOCK, len(scores) // (4 * k))
    if width < 2:
        return np.flatnonzero(scores >= _kth(scores, k))
    # The k-th best maximum of disjoint blocks: k tokens reach it, so the k best do.
    whole = len(scores) // width * width
    maxima = np.concatenate([scores[:whole].reshape(width, -1).max(axis=0), scores[whole:]])
    candidates = np.flatnonzero(scores >= _kth(maxima, k))
    best = scores[candidates]
    return candidates[best >= _kth(best, k)]


def _kth(scores: Floats, k: int) -> np.float32:
    """The ``k``-th highest score."""
    at = len(scores) - k
    score: np.float32 = np.partition(scores, at)[at]
    return score


def top_p(scores: Floats, p: float) -> Ids:
    """The tokens that `apply_top_p` keeps. Of those that tie at the border, the last by id."""
    best, removable = scores.max(), np.float32(1 - p)
    weights = np.exp(scores - best)
    total = weights.sum()
    among, others = scores, 0.0
    if len(scores) > 4 * NUCLEUS:
        likely = top_k(scores, NUCLEUS)
        rest = float((weights.sum(dtype=np.float64) - weights[likely].sum(dtype=np.float64)) / total)
        if rest <= removable:
            among, others = scores[likely], rest
    ordered = np.sort(among)
    cumulative = others + np.cumsum(np.exp(ordered - best) / total, dtype=np.float64)
    removed = int(np.count_nonzero(cumulative.astype(np.float32) <= removable))
    least = ordered[min(removed, len(ordered) - 1)]
    kept = scores > least
    ties = np.flatnonzero(scores == least)
    kept[ties[min(removed, len(ordered) - 1) - int(np.searchsorted(ordered, least)) :]] = True
    return np.flatnonzero(kept)


def min_p(scores: Floats, p: float) -> Ids:
    """The tokens that `apply_min_p` keeps."""
    probabilities = _softmax(scores)
    return np.flatnonzero(probabilities >= np.float32(p) * probabilities.max())


def typical(scores: Floats, mass: float) -> Ids:
    """The tokens that `apply_typical` keeps."""
    shifted = scores - scores.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    probabilities = np.exp(logprobs)
    # A token of no probability adds nothing, though its logarithm is infinite.
    information = np.multiply(logprobs, probabilities, where=probabilities > 0, out=np.zeros_like(scores))
    distance = np.abs(-logprobs + information.sum())
    order = np.argsort(distance)
    cumulative = np.cumsum(_softmax(scores)[order], dtype=np.float64).astype(np.float32)
    last = min(int(np.count_nonzero(cumulative < np.float32(mass))), len(scores) - 1)
    return np.flatnonzero(distance <= distance[order[last]])


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max())
    probabilities: Floats = weights / weights.sum()
    return probabilities


def named_filters(options: SamplingOptions, prompt: int = 0) -> list[tuple[str, Filter]]:
    """The active filters in transformers' order, each with the option that asks for it.

    Greedy decoding has only those on repetition. The first ``prompt`` tokens of the text were not generated.
    """
    keeps: list[tuple[str, Filter]] = [
        (name, lambda scores, _, keep=keep: _only(scores, keep(scores)))  # type: ignore[misc]
        for name, keep in _keeps(options)
    ]
    return _changes(options, prompt) + keeps


def _changes(options: SamplingOptions, prompt: int) -> list[tuple[str, Filter]]:
    """The filters that look at the text, or at each score alone.

    What OpenAI has and transformers does not stands where vLLM has it: the bias before all penalties, the
    others after that on repetition.
    """
    filters: list[tuple[str, Filter]] = []
    request = options if isinstance(options, GenerateOptions) else None
    if request and request.logit_bias:
        tokens = np.array([token for token, _ in request.logit_bias], np.intp)
        added = np.array([bias for _, bias in request.logit_bias], np.float32)
        filters.append(("logit_bias", lambda s, _: apply_logit_bias(s, tokens, added)))
    if options.repetition_penalty != 1:
        penalty = options.repetition_penalty
        filters.append(("repetition_penalty", lambda s, ids: apply_repetition_penalty(s, ids, penalty)))
    if request and (request.presence_penalty or request.frequency_penalty):
        presence, frequency = request.presence_penalty, request.frequency_penalty
        name = "presence_penalty" if presence else "frequency_penalty"
        filters.append((name, lambda s, ids: apply_presence_frequency(s, ids[prompt:], presence, frequency)))
    if options.no_repeat_ngram_size > 0:
        size = options.no_repeat_ngram_size
        filters.append(("no_repeat_ngram_size", lambda s, ids: apply_no_repeat_ngram(s, ids, size)))
    if options.temperature != 1 and not options.greedy:
        filters.append(("temperature", lambda s, _: apply_temperature(s, options.temperature)))
    return filters


def _keeps(options: SamplingOptions) -> list[tuple[str, Keep]]:
    """The filters that remove what is unlikely; what is removed changes none that comes after."""
    keeps: list[tuple[str, Keep]] = []
    if options.greedy:
        return keeps
    if options.top_k > 0:
        keeps.append(("top_k", lambda scores: top_k(scores, options.top_k)))
    if options.top_p < 1:
        keeps.append(("top_p", lambda scores: top_p(scores, options.top_p)))
    if options.min_p > 0:
        keeps.append(("min_p", lambda scores: min_p(scores, options.min_p)))
    if options.typical_p < 1:
        keeps.append(("typical_p", lambda scores: typical(scores, options.typical_p)))
    return keeps


class Sampler:
    """Draws the tokens of a text by one set of options. Its first ``prompt`` tokens were not generated."""

    def __init__(self, options: SamplingOptions, prompt: int = 0) -> None:
        self._greedy = options.greedy
        self._changes = [change for _, change in _changes(options, prompt)]
        self._keeps = [keep for _, keep in _keeps(options)]

    def __call__(self, logits: Floats, history: Sequence[int], seed: int, position: int) -> int:
        """The token after ``history``, at the logical ``position``, from the logits [V] after it.

        Raises `ModelFileError` for logits that are no numbers.
        """
        scores = self._changed(logits, history)
        if self._greedy:
            return int(scores.argmax())
        ids: Ids | None = None
        for keep in self._keeps:
            kept = keep(scores)
            scores, ids = scores[kept], kept if ids is None else ids[kept]
        return draw(scores, seed, position, ids)

    def filtered(self, logits: Floats, history: Sequence[int]) -> Floats:
        """The scores [V] after all filters. Raises `ModelFileError` as a call does."""
        scores = self._changed(logits, history)
        for keep in self._keeps:
            scores = _only(scores, keep(scores))
        return scores

    def _changed(self, logits: Floats, history: Sequence[int]) -> Floats:
        check_finite(logits)
        for change in self._changes:
            logits = change(logits, history)
        return logits


def draw(scores: Floats, seed: int, position: int, ids: Ids | None = None) -> int:
    """The token whose score and noise have the highest sum, in float64.

    ``scores`` are those of the tokens ``ids``, or of the whole vocabulary. Raises `ModelFileError` where
    no score is finite, as after a temperature that made the logits overflow.
    """
    noise = gumbel_of_all(seed, position, len(scores)) if ids is None else gumbel(seed, position, ids)
    noise += scores
    best = int(noise.argmax())
    if not math.isfinite(noise[best]):
        raise _no_numbers()
    return best if ids is None else int(ids[best])


def check_finite(logits: Floats) -> None:
    """Raise `ModelFileError` for logits that are no numbers: weights can be finite and overflow."""
    # A NaN counts as the highest.
    if not math.isfinite(logits.max()):
        raise _no_numbers()


def _no_numbers() -> ModelFileError:
    return ModelFileError(
        "the model computes NaN or infinity",
        hint="its weights are damaged, or too large for the precision; try --precision fp32",
    )


class TransformersDraw:
    """One ``torch.multinomial`` a step over the full vocabulary of all rows, as transformers draws.

    Torch is imported when the first token is drawn.
    """

    def __init__(self, seed: int, rows: int) -> None:
        self._seed, self._rows = seed, rows
        self._generator: torch.Generator | None = None

    def __call__(self, scores: Sequence[Floats], places: Sequence[int]) -> list[int]:
        """The tokens of the rows at ``places``, from their filtered scores [V] each.

        A row that has ended keeps its place: what it draws does not matter, only that it draws.
        """
        import torch

        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self._seed)
        present: Any = torch.from_numpy(np.stack(scores)).softmax(dim=-1)
        if len(places) < self._rows:
            probabilities = torch.ones(self._rows, present.shape[-1])
            probabilities[list(places)] = present
        else:
            probabilities = present
        drawn = torch.multinomial(probabilities, num_samples=1, generator=self._generator).squeeze(1).tolist()
        return [int(drawn[place]) for place in places]


def token_logprobs(logits: Floats, token: int, top: int) -> TokenLogprobs:
    """The log-probability of ``token`` by the logits [V], and of the ``top`` likeliest, in float64."""
    best = float(logits.max())
    total = best + math.log(float(np.exp(logits.astype(np.float64) - best).sum()))
    if not top:
        return TokenLogprobs(float(logits[token]) - total)
    likely = top_k(logits, top)
    likely = likely[np.argsort(-logits[likely], kind="stable")][:top]
    return TokenLogprobs(
        float(logits[token]) - total,
        tuple((int(each), float(logits[each]) - total) for each in likely),
    )
