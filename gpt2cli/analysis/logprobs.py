"""Log-probabilities of given tokens: the ground under `score`, `inspect` and `compare`.

Only positions that are asked for go through the output head, a slice at a time: logits are never held
for more than `LOGITS_AT_ONCE` numbers or `FEWEST_ROWS` places, however long the text is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.core.torch_model import TorchModel, whole_texts
from gpt2cli.errors import ModelFileError, PromptTooLong

LOGITS_AT_ONCE = 2**21
"""Numbers; 8 MiB in fp32, and a few times that while they are worked on."""
FEWEST_ROWS = 128
"""The fewest rows of a slice, however large the vocabulary: fewer would read the head's matrix too often."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """What the model thought of one token, given those before it. Logarithms are natural."""

    token: int
    logprob: float
    rank: int
    """1 is the likeliest; tokens that tie share the better rank."""
    entropy: float
    """The entropy of the distribution that the token was drawn from, in nats."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of N tokens, on the CPU. ``ranks`` and ``entropies`` only where details were asked for."""

    tokens: Tensor
    """[N] int64: the tokens that were predicted."""
    logprobs: Tensor
    """[N] fp32"""
    ranks: Tensor | None = None
    """[N] int64"""
    entropies: Tensor | None = None
    """[N] fp32, nats"""
    top_tokens: Tensor | None = None
    """[N, K] int64"""
    top_logprobs: Tensor | None = None
    """[N, K] fp32"""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def nll(self) -> float:
        """The negative log-likelihood of all the tokens together, in nats, summed in float64."""
        return -float(self.logprobs.double().sum())

    def __iter__(self) -> Iterator[TokenScore]:
        """Token by token; needs details."""
        assert self.ranks is not None and self.entropies is not None
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(self)
        if self.top_tokens is not None and self.top_logprobs is not None:
            pairs = zip(self.top_tokens.tolist(), self.top_logprobs.tolist(), strict=True)
            tops = [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
        columns = (t.tolist() for t in (self.tokens, self.logprobs, self.ranks, self.entropies))
        for token, logprob, rank, entropy, top in zip(*columns, tops, strict=True):
            yield TokenScore(token, logprob, rank, entropy, top)


def score_ids(model: TorchModel, ids: Sequence[int], *, top: int = 0) -> list[TokenScore]:
    """Score every token of one text but the first: ``len(ids) - 1`` entries, the i-th about ``ids[i + 1]``.

    ``top`` is the number of likeliest tokens listed at each place. The text may have one token more
    than the model's context, for its last token is only predicted. Raises `PromptTooLong`, `ModelFileError`.
    """
    if len(ids) < 2:
        return []
    return list(score_rows(model, [ids], details=True, top=top)[0])


@torch.inference_mode()
def score_rows(
    model: TorchModel,
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int] | None = None,
    *,
    details: bool = False,
    top: int = 0,
) -> list[Scores]:
    """Score texts of any length (at least 2 tokens) in one batch: row r's tokens from ``firsts[r]`` on.

    ``firsts`` are at least 1, and 1 where not given; ``details`` adds ranks and entropies, ``top`` > 0
    the likeliest tokens. Raises `PromptTooLong` for a row that does not fit, `ModelFileError` where the
    model computes no numbers.
    """
    firsts = firsts or [1] * len(rows)
    counts = [len(row) - 1 for row in rows]
    longest = max(counts)
    if longest > model.config.n_positions:
        raise PromptTooLong(
            f"the text has {longest + 1} tokens; the model's context is {model.config.n_positions}"
        )
    hidden = model.hidden_states(whole_texts([row[:-1] for row in rows]))
    # What predicts the token at place p is the state at p - 1.
    ends = itertools.accumulate(counts)
    wanted = [
        torch.arange(end - count + first - 1, end)
        for end, count, first in zip(ends, counts, firsts, strict=True)
    ]
    states = hidden[torch.cat(wanted).to(model.device)]
    targets = torch.tensor([token for row, first in zip(rows, firsts, strict=True) for token in row[first:]])
    scores = score_states(model, states, targets, details=details, top=top)
    return _split(scores, [count - first + 1 for count, first in zip(counts, firsts, strict=True)])


@torch.inference_mode()
def score_states(
    model: TorchModel, states: Tensor, targets: Tensor, *, details: bool = False, top: int = 0
) -> Scores:
    """Score the tokens ``targets``: [N] by the final hidden states that predict them, [N, D]."""
    at_once = max(FEWEST_ROWS, LOGITS_AT_ONCE // model.config.vocab_size)
    parts = [
        _score_slice(model.logits(states[at : at + at_once]), targets[at : at + at_once], details, top)
        for at in range(0, len(targets), at_once)
    ]
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return Scores(targets, *columns)  # type: ignore[arg-type]


def _score_slice(logits: Tensor, targets: Tensor, details: bool, top: int) -> tuple[Tensor | None, ...]:
    """logits: [n, V], targets: [n] -> the columns of `Scores` after ``tokens``."""
    normaliser = logits.logsumexp(dim=-1)
    check_finite(normaliser)
    chosen = logits.gather(-1, targets.to(logits.device)[:, None])
    columns: list[Tensor | None] = [chosen.squeeze(-1) - normaliser, None, None, None, None]
    if details:
        columns[1] = (logits > chosen).sum(dim=-1) + 1
        columns[2] = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    if top:
        best, columns[3] = logits.topk(min(top, logits.shape[-1]), dim=-1)
        columns[4] = best - normaliser[:, None]
    return tuple(None if column is None else column.cpu() for column in columns)


def check_finite(numbers: Tensor) -> None:
    """Raise `ModelFileError` for what no model should compute: weights can be finite and overflow."""
    if not bool(numbers.isfinite().all()):
        raise ModelFileError(
            "the model computes NaN or infinity",
            hint="its weights are damaged, or too large for the precision; try --precision fp32",
        )


def _split(scores: Scores, lengths: Sequence[int]) -> list[Scores]:
    columns = (
        scores.tokens,
        scores.logprobs,
        scores.ranks,
        scores.entropies,
        scores.top_tokens,
        scores.top_logprobs,
    )
    ends = list(itertools.accumulate(lengths))
    return [
        Scores(*(None if column is None else column[end - length : end] for column in columns))  # type: ignore[arg-type]
        for end, length in zip(ends, lengths, strict=True)
    ]
