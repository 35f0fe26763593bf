"""How probable given continuations of a text are, beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2cli.analysis.logprobs import Scores
from gpt2cli.analysis.score import Batcher
from gpt2cli.core.engine import Engine
from gpt2cli.core.torch_model import TorchModel
from gpt2cli.errors import PromptTooLong, UsageError

Normalize = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation. ``logprob`` is of all its tokens together, in nats."""

    index: int
    """Its place among the choices given."""
    text: str
    tokens: tuple[int, ...]
    logprob: float
    token_logprobs: tuple[float, ...]
    score: float
    """What it is ranked by: ``logprob``, or that a token or a byte."""
    share: float
    """The softmax of ``score`` over the choices."""

    @property
    def probability(self) -> float:
        """That the text goes on with exactly these tokens."""
        return math.exp(self.logprob)


def continuations(
    batcher: Batcher, context: Sequence[int], followers: Sequence[Sequence[int]], *, details: bool = False
) -> list[Scores]:
    """The scores of each of ``followers`` after ``context``; all must fit (`check_fits`)."""
    rows = [[*context, *follower] for follower in followers]
    return batcher.score(rows, [len(context)] * len(rows), details=details)


def rank_choices(
    engine: Engine,
    context: Sequence[int],
    texts: Sequence[str],
    followers: Sequence[Sequence[int]],
    normalize: Normalize = "none",
    batcher: Batcher | None = None,
) -> list[Choice]:
    """The choices, best first; ``followers`` are the ids of ``texts``.

    A choice is tokenised by itself, and scored as exactly those tokens after the context. Raises
    `UsageError` for an empty one, `PromptTooLong`.
    """
    if not context:
        raise UsageError("choices need a text before them")
    for text, ids in zip(texts, followers, strict=True):
        if not ids:
            raise UsageError("a choice is empty")
        check_fits(engine.model, len(context) + len(ids), text)
    scores = continuations(batcher or Batcher(engine.model), context, followers)
    sums = [-part.nll for part in scores]
    lengths = [
        1 if normalize == "none" else len(ids) if normalize == "tokens" else max(1, len(text.encode()))
        for text, ids in zip(texts, followers, strict=True)
    ]
    ranked = [total / length for total, length in zip(sums, lengths, strict=True)]
    best = max(ranked)
    weights = [math.exp(score - best) for score in ranked]
    choices = [
        Choice(
            index=n,
            text=texts[n],
            tokens=tuple(followers[n]),
            logprob=sums[n],
            token_logprobs=tuple(scores[n].logprobs.tolist()),
            score=ranked[n],
            share=weights[n] / math.fsum(weights),
        )
        for n in range(len(texts))
    ]
    return sorted(choices, key=lambda choice: -choice.score)


def check_fits(model: TorchModel, tokens: int, text: str) -> None:
    """Raise `PromptTooLong` unless ``tokens`` can be scored at once: the last is only predicted."""
    if tokens > model.config.n_positions + 1:
        raise PromptTooLong(
            f"with the choice {text[:40]!r} the text has {tokens} tokens; "
            f"the model's context is {model.config.n_positions}",
            hint="shorten the text",
        )
