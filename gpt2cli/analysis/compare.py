"""Models, prompts, seeds and settings side by side: where texts part, what one model thinks of another's.

Nothing here loads a model or prints: the caller hands in engines, and takes the runs as they are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpt2cli.analysis.logprobs import score_rows
from gpt2cli.analysis.nextword import NextWords, Path, continuing_tokens
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Choice, Result
from gpt2cli.errors import UsageError
from gpt2cli.likelihood import bits_per_byte
from gpt2cli.options import GenerateOptions
from gpt2cli.text.tokenizer import Tokenizer


class Writer(Protocol):
    """What continues prompts: an `Engine`, or a model on a server, which has no ``tokenizer`` here."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def options(self, **given: Any) -> GenerateOptions: ...

    def generate(self, prompt: str, options: GenerateOptions) -> Result: ...


@dataclass(frozen=True, slots=True)
class Run:
    """One continuation. ``model``, ``prompt``, ``setting`` and ``seed_index`` count from 0."""

    model: int
    prompt: int
    setting: int
    seed_index: int
    options: GenerateOptions
    """As the model took them: its own defaults are in them."""
    choice: Choice
    own: Opinion
    """What the model that wrote it thinks of it."""

    @property
    def seed(self) -> int | None:
        """None for greedy decoding, which draws nothing."""
        return None if self.options.greedy else self.options.seed


@dataclass(frozen=True, slots=True)
class Opinion:
    """The log-probability of a continuation under a model, or why there is none."""

    logprob: float | None
    """The natural logarithm of the probability of all tokens together."""
    tokens: int
    """The length in tokens of the model that gives the opinion."""
    bytes: int | None
    """The length of the text in bytes; None for a tokenizer that is not byte-level."""
    same_tokens: bool = True
    """Whether it is about the very tokens that were drawn; else only bits per byte can be compared."""
    refused: str | None = None

    @property
    def bits_per_byte(self) -> float | None:
        """The same whatever the tokenizer; None for an empty text."""
        return None if self.logprob is None else bits_per_byte(-self.logprob, self.bytes)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a run leaves another."""

    characters: int
    """How many characters of the continuations agree."""
    tokens: int | None
    """How many tokens agree; None where the tokenizers differ."""
    identical: bool


def run_grid(
    engines: Sequence[Writer],
    prompts: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
) -> Iterator[Run]:
    """Every model on every prompt with every setting and seed, in this order of loops.

    ``settings`` are what is given of `GenerateOptions`; the rest is each model's own. A greedy setting
    runs once, not once a seed. Raises what `Engine.stream` raises.
    """
    for model, engine in enumerate(engines):
        for prompt, text in enumerate(prompts):
            for setting, given in enumerate(settings):
                for seed_index, seed in enumerate(seeds):
                    options = engine.options(**{**given, "seed": seed, "logprobs": 0})
                    if options.greedy and seed_index:
                        break
                    result = engine.generate(text, options)
                    yield Run(
                        model, prompt, setting, seed_index, result.options, result.choices[0],
                        _own_opinion(engine, result.choices[0]),
                    )  # fmt: skip


def _own_opinion(engine: Writer, choice: Choice) -> Opinion:
    """A model's opinion of its own text, from the log-probabilities before any filter."""
    if engine.tokenizer is None and not (choice.logprobs or not choice.text):
        size = len(choice.text.encode("utf-8", "replace"))
        return Opinion(None, 0, size, False, "the server tells no log-probabilities")
    logprob = math.fsum(detail.logprob for detail in choice.logprobs)
    if engine.tokenizer is None:
        return Opinion(logprob, len(choice.logprobs), len(choice.text.encode("utf-8", "replace")))
    return Opinion(logprob, len(choice.token_ids), _bytes_of(engine, choice.token_ids))


def _bytes_of(engine: Writer, ids: Sequence[int]) -> int | None:
    tokenizer = engine.tokenizer
    if tokenizer is None:
        return None
    return sum(len(tokenizer.token_bytes(token)) for token in ids)


def opinion(engines: Sequence[Writer], prompt: str, run: Run, model: int) -> Opinion:
    """What ``model`` thinks of the continuation of ``run``.

    With the same vocabulary it is about the same tokens. Otherwise the text is tokenised anew, the
    prompt and the continuation apart, and only bits per byte can be held against each other. There is
    no opinion (``refused``) on a text that does not fit the context or cannot be written in the
    model's tokens.
    """
    writer, judge = engines[run.model], engines[model]
    ids, size = run.choice.token_ids, run.own.bytes
    if not isinstance(judge, Engine):
        return Opinion(None, 0, size, False, "a model on a server gives none on the texts of others")
    assert judge.tokenizer is not None
    same = writer.tokenizer is not None and writer.tokenizer.same_vocabulary(judge.tokenizer)
    try:
        if not same:
            text = (
                run.choice.text if writer.tokenizer is None else writer.tokenizer.decode(ids, continues=True)
            )
            if "\ufffd" in text:
                return Opinion(None, 0, size, False, "the text has a character that is not whole")
            ids = judge.tokenizer.encode(text, continues=True)
            size = len(text.encode("utf-8"))
        before = judge.encode(prompt, special_tokens=run.options.special_tokens)
    except UsageError as error:
        return Opinion(None, 0, size, same, str(error))
    if not ids:
        return Opinion(0.0, 0, size, same)
    context = judge.config.n_positions
    if len(before) + len(ids) > context + 1:
        return Opinion(None, len(ids), size, same, f"it does not fit the context of {context} tokens")
    if max(ids) >= judge.config.vocab_size:
        return Opinion(None, len(ids), size, same, "it has a token that the model has not")
    scores = score_rows(judge.model, [[*before, *ids]], [len(before)])[0]
    return Opinion(-scores.nll, len(ids), size, same)


def divergence(engines: Sequence[Writer], run: Run, reference: Run) -> Divergence:
    """Where ``run`` leaves ``reference``."""
    one, other = engines[run.model].tokenizer, engines[reference.model].tokenizer
    tokens = None
    if one is not None and other is not None and (one is other or one.same_vocabulary(other)):
        tokens = _common(run.choice.token_ids, reference.choice.token_ids)
    characters = _common(run.choice.text, reference.choice.text)
    return Divergence(characters, tokens, run.choice.text == reference.choice.text)


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many elements are the same from the beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class WordTable:
    """Words that may come next, and their probability after each prompt."""

    words: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    """A row for each word, a column for each prompt."""
    finished: bool
    """Whether the search came to its end; see `NextWords.likeliest`."""


def likeliest_words(
    engine: Engine, prompts: Sequence[str], count: int, *, special_tokens: bool = False
) -> WordTable:
    """The ``count`` likeliest next words of each prompt, all of them with their probability after every
    prompt, those with the largest average first.
    """
    places = _places(engine, prompts, special_tokens)
    paths: dict[str, set[Path]] = {}
    finished = True
    for place in places:
        best, done = place.likeliest(count)
        finished = finished and done
        for word in best:
            paths.setdefault(word.text, set()).update(word.paths)
    rows = {word: tuple(place.probability(sorted(ways)) for place in places) for word, ways in paths.items()}
    order = sorted(rows, key=lambda word: (-sum(rows[word]), word))
    return WordTable(tuple(order), tuple(rows[word] for word in order), finished)


def given_words(
    engine: Engine, prompts: Sequence[str], words: Sequence[str], *, special_tokens: bool = False
) -> WordTable:
    """The probability of each of ``words`` after each prompt, written as the tokenizer writes it."""
    places = _places(engine, prompts, special_tokens)
    rows = tuple(
        tuple(
            place.probability([place.path_of(prompt, word)])
            for place, prompt in zip(places, prompts, strict=True)
        )
        for word in words
    )
    return WordTable(tuple(words), rows, True)


def _places(engine: Engine, prompts: Sequence[str], special_tokens: bool) -> list[NextWords]:
    """The next words of each prompt, read as `Engine.stream` reads it."""
    longer = continuing_tokens(engine)
    ids = (engine.encode(prompt, special_tokens=special_tokens) for prompt in prompts)
    return [NextWords(engine, each, longer) for each in ids]
