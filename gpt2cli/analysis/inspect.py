"""A text in groups of tokens that can be shown, each with what the model thought of its tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2cli.analysis.logprobs import TokenScore
from gpt2cli.analysis.score import Scorer
from gpt2cli.analysis.windows import WindowOptions, windows
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong
from gpt2cli.likelihood import bits, bits_per_byte, perplexity
from gpt2cli.text.detokenizer import Detokenizer
from gpt2cli.text.tokenizer import Tokenizer

Measure = Literal["probability", "rank", "entropy"]

LEVELS = 10


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text; ``score`` is None for one that nothing predicts: the first."""

    place: int
    """Its place in the text, from 1 on."""
    token: int
    score: TokenScore | None


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Whole characters, and the tokens (mostly one) that they are made of."""

    text: str
    tokens: tuple[Token, ...]

    def bits(self, measure: Measure) -> float | None:
        """How unexpected the group is: 0 for the most expected; None where nothing predicted it.

        By probability the surprisal of its tokens together; by rank the base-2 logarithm of the worst
        rank; by entropy the uncertainty before its tokens, the greatest.
        """
        scores = [token.score for token in self.tokens if token.score is not None]
        if not scores:
            return None
        if measure == "probability":
            return max(0.0, bits(-math.fsum(score.logprob for score in scores)))
        if measure == "rank":
            return math.log2(max(score.rank for score in scores))
        return bits(max(score.entropy for score in scores))

    def level(self, measure: Measure) -> int | None:
        """`bits` as a whole number from 0 to 9, rounded down."""
        found = self.bits(measure)
        # A surprisal of exactly n bits must not fall below n by rounding.
        return None if found is None else LEVELS - 1 if found >= LEVELS else int(found + 1e-9)


def score_tokens(
    engine: Engine, ids: Sequence[int], *, stride: int | None = None, top: int = 0
) -> list[Token]:
    """The tokens of a text, each scored but the first; ``top`` likeliest ones are listed at each place.

    A text longer than the context is read in windows of the context that move on by ``stride``. Raises
    `PromptTooLong` without one, `InvalidOption`, `ModelFileError`.
    """
    context = engine.config.n_positions
    if stride is not None:
        options = WindowOptions.of(context, stride=stride)
    elif len(ids) <= context + 1:
        options = WindowOptions(context + 1, context)
    else:
        raise PromptTooLong(
            f"the text has {len(ids)} tokens; the model's context is {context}",
            hint=f"--stride {max(1, context // 2)} reads it in windows that overlap",
        )
    scores: list[TokenScore | None] = [None] * len(ids)
    for group in Scorer(engine, details=True, top=top).groups(windows(None, [ids], options)):
        for part in group:
            at = part.window.begin + part.window.first
            scores[at : at + part.window.scored] = [*part.scores]
    return [
        Token(place, token, score) for place, (token, score) in enumerate(zip(ids, scores, strict=True), 1)
    ]


def token_groups(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[TokenGroup]:
    """``tokens`` grouped so that each group is whole characters; joined they are the decoded text."""
    detokenizer = Detokenizer(tokenizer)
    groups: list[TokenGroup] = []
    waiting: list[Token] = []
    for token in tokens:
        waiting.append(token)
        text = detokenizer.push(token.token)
        if text:
            groups.append(TokenGroup(text, tuple(waiting)))
            waiting = []
    rest = detokenizer.flush()
    if waiting or rest:
        groups.append(TokenGroup(rest, tuple(waiting)))
    return groups


@dataclass(frozen=True, slots=True)
class Summary:
    """A text as a whole; None where there is nothing to divide by."""

    tokens: int
    scored: int
    """Tokens that something predicts."""
    nll: float
    """The negative log-likelihood, in nats."""
    perplexity: float | None
    """Per token."""
    bits_per_byte: float | None
    """Over the bytes of the scored tokens."""


def summarise(
    tokenizer: Tokenizer, tokens: Sequence[Token], special: Collection[int] = frozenset()
) -> Summary:
    """The figures of ``tokens`` together; the ids ``special`` stand for no bytes, as the end of text."""
    scored = [token for token in tokens if token.score is not None]
    nll = -math.fsum(token.score.logprob for token in scored if token.score)
    size = sum(len(tokenizer.token_bytes(t.token)) for t in scored if t.token not in special)
    return Summary(len(tokens), len(scored), nll, perplexity(nll, len(scored)), bits_per_byte(nll, size))
