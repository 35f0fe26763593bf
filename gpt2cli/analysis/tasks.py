"""Tests that the GPT-2 paper used: the last word of a passage, and a gap to be filled.

``lambada`` (Paperno et al. 2016): the last word of each passage, with what stands before it as context.
``winograd`` (Levesque et al. 2012): each candidate is put in the place of the pronoun, and what follows is
scored alone: the partial scoring of Trinh and Le 2018 (arXiv 1806.02847), as in Radford et al. 2019.
``cloze`` (Hill et al. 2016, the Children's Book Test): each candidate is put into the gap, and scored with
the rest of the text after it, as section 3.2 of Radford et al. 2019 describes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2cli.analysis.batches import gathered
from gpt2cli.analysis.choices import continuations
from gpt2cli.analysis.score import Batcher
from gpt2cli.core.engine import Engine
from gpt2cli.errors import UsageError
from gpt2cli.likelihood import perplexity

GAP = re.compile(r"_{3,}|X{5}")
"""``___`` or ``XXXXX``, as the Children's Book Test has it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, cut before its last word, as tokens."""

    tag: Any
    context: Sequence[int]
    target: Sequence[int]
    truncated: int = 0
    """Tokens of the context left out for want of room."""


@dataclass(frozen=True, slots=True)
class LastWord:
    """How well the last word of one passage was predicted."""

    passage: Passage
    logprob: float
    """The log-probability of the whole word, in nats."""
    last_token_logprob: float
    correct: bool
    """Whether each token was the likeliest in its place, as if greedy decoding had written it."""
    last_token_correct: bool


@dataclass(slots=True)
class LambadaResult:
    """Sums over passages.

    The paper speaks of the last word. Others came near its figures (perplexity 35.13 and 45.99% for the 124M
    model) only by counting the word's last token alone, which is easier (openai/gpt-2, issue 131); both
    are given here.
    """

    passages: int = 0
    correct: int = 0
    last_token_correct: int = 0
    nll: float = 0.0
    last_token_nll: float = 0.0
    truncated: int = 0

    def add(self, word: LastWord) -> None:
        """Take in one passage."""
        self.passages += 1
        self.correct += word.correct
        self.last_token_correct += word.last_token_correct
        self.nll -= word.logprob
        self.last_token_nll -= word.last_token_logprob
        self.truncated += word.passage.truncated > 0

    def document(self) -> dict[str, Any]:
        """As JSON has it. Perplexities are per word, and per last token."""
        count = max(1, self.passages)
        return {
            "passages": self.passages,
            "accuracy": self.correct / count,
            "perplexity": perplexity(self.nll, self.passages),
            "last_token_accuracy": self.last_token_correct / count,
            "last_token_perplexity": perplexity(self.last_token_nll, self.passages),
            "truncated_passages": self.truncated,
        }


def passage(
    engine: Engine, tag: Any, text: str, encode: Callable[[str], list[int]], before: Sequence[int] = ()
) -> Passage:
    """``text`` cut before its last word, which is scored with the space before it.

    ``before`` are tokens that stand before the text, as a bos token. What does not fit the model's context
    is left out at the beginning, these first. Raises `UsageError` where there are not two words.
    """
    text = text.rstrip()
    cut = max(text.rfind(" "), text.rfind("\n"), text.rfind("\t"))
    if cut <= 0 or not text[:cut].strip():
        raise UsageError(f"{tag}: no last word with a text before it")
    context, target = encode(text[:cut]), encode(text[cut:])
    room = engine.config.n_positions + 1 - len(target)
    if room < 1:
        raise UsageError(f"{tag}: its last word alone does not fit the model's context")
    return Passage(tag, [*before, *context][-room:], target, max(0, len(context) - room))


def last_words(batcher: Batcher, passages: Iterable[Passage]) -> Iterator[LastWord]:
    """Score passages, in batches of like length, in the order they come in."""
    for group in gathered(passages, lambda p: len(p.context) + len(p.target), batcher.batch_tokens):
        rows = [[*passage.context, *passage.target] for passage in group]
        firsts = [len(passage.context) for passage in group]
        for passage, scores in zip(group, batcher.score(rows, firsts, details=True), strict=True):
            assert scores.ranks is not None
            yield LastWord(
                passage,
                logprob=-scores.nll,
                last_token_logprob=float(scores.logprobs[-1]),
                correct=bool((scores.ranks == 1).all()),
                last_token_correct=bool(scores.ranks[-1] == 1),
            )


@dataclass(frozen=True, slots=True)
class Cloze:
    """A text with a gap, and what may stand in it."""

    tag: Any
    before: str
    after: str
    choices: tuple[str, ...]
    answer: int | None
    """The index of the right choice, where it is known."""


@dataclass(frozen=True, slots=True)
class ClozeScore:
    """The log-probability of each choice with the rest of the text after it."""

    cloze: Cloze
    logprobs: tuple[float, ...]
    truncated: int
    chosen: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chosen", max(range(len(self.logprobs)), key=self.logprobs.__getitem__))

    @property
    def correct(self) -> bool | None:
        """Whether the likeliest choice is the answer; None where no answer is given."""
        return None if self.cloze.answer is None else self.chosen == self.cloze.answer


def read_cloze(tag: Any, record: Mapping[str, Any], text: str) -> Cloze:
    """A cloze from a record with ``choices`` and, perhaps, ``answer`` (an index or one of the choices).

    Raises `UsageError`.
    """
    choices, answer = record.get("choices"), record.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise UsageError(f"{tag}: choices must be a list of at least two texts")
    gaps = list(GAP.finditer(text))
    if len(gaps) != 1:
        raise UsageError(f"{tag}: the text has {len(gaps)} gaps; one ___ is wanted")
    if isinstance(answer, str):
        if answer not in choices:
            raise UsageError(f"{tag}: the answer is none of the choices")
        answer = choices.index(answer)
    if answer is not None and (type(answer) is not int or not 0 <= answer < len(choices)):
        raise UsageError(f"{tag}: the answer is none of the choices")
    return Cloze(tag, text[: gaps[0].start()], text[gaps[0].end() :], tuple(choices), answer)


def score_cloze(
    batcher: Batcher,
    engine: Engine,
    cloze: Cloze,
    encode: Callable[[str], list[int]],
    first: Sequence[int] = (),
) -> ClozeScore:
    """Put each choice into the gap. What is common to all and does not fit is left out at the beginning.

    ``first`` are tokens that stand before the text, as a bos token; they are the first to be left out.

    The text is cut before the space that stands before the gap, so that a choice is tokenised as a word
    within the text. Raises `UsageError` where nothing stands before the gap and the model has no bos.
    """
    before, space = cloze.before, ""
    if before[-1:] in (" ", "\n"):
        before, space = before[:-1], before[-1]
    followers = [encode(space + choice + cloze.after) for choice in cloze.choices]
    context = encode(before) if before else []
    if not context and not first:
        if engine.config.bos_token_id is None:
            raise UsageError(f"{cloze.tag}: nothing stands before the gap, and the model has no bos token")
        context = [engine.config.bos_token_id]
    room = engine.config.n_positions + 1 - max(map(len, followers))
    if room < 1:
        raise UsageError(f"{cloze.tag}: what follows the gap does not fit the model's context")
    scores = continuations(batcher, [*first, *context][-room:], followers)
    return ClozeScore(cloze, tuple(-part.nll for part in scores), max(0, len(context) - room))


def score_partly(
    batcher: Batcher,
    engine: Engine,
    cloze: Cloze,
    encode: Callable[[str], list[int]],
    first: Sequence[int] = (),
) -> ClozeScore:
    """Put each choice into the gap, and score only what follows it (partial scoring, Trinh and Le 2018).

    What follows is tokenised by itself, so that all choices are judged by the same tokens. What does not fit
    is left out at the beginning, of each the same part of the text before the gap. Raises `UsageError` where
    nothing follows the gap, or where it does not fit with a choice before it.
    """
    if not cloze.after.strip():
        raise UsageError(f"{cloze.tag}: nothing follows the gap, by which the choices could be told apart")
    before, space = cloze.before, ""
    if before[-1:] in (" ", "\n"):
        before, space = before[:-1], before[-1]
    follower, candidates = encode(cloze.after), [encode(space + choice) for choice in cloze.choices]
    context = encode(before) if before else []
    room = engine.config.n_positions + 1 - len(follower) - max(map(len, candidates))
    if room < 0:
        raise UsageError(f"{cloze.tag}: a choice and what follows it do not fit the model's context")
    kept = [*first, *context][max(0, len(first) + len(context) - room) :]
    rows = [[*kept, *candidate, *follower] for candidate in candidates]
    scores = batcher.score(rows, [len(kept) + len(candidate) for candidate in candidates])
    return ClozeScore(cloze, tuple(-part.nll for part in scores), max(0, len(context) - room))
