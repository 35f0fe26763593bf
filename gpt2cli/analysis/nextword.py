"""The next whole word and its probability, where a token may be only a part of a word.

The probability of a word is that of its tokens, times that of all tokens after them that do not make the
word longer. So " law" and " lawyer" are two words whose probabilities can be compared, and the
probabilities of all words add up to 1. A mark of punctuation and a line break count as words. What makes the
last word of the prompt longer is no next word: its probability, which is then missing from the sum, is that
the prompt does not end where a word does.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.analysis.logprobs import check_finite
from gpt2cli.core.backend import Batch
from gpt2cli.core.engine import Engine
from gpt2cli.errors import PromptTooLong, UsageError

Path = tuple[int, ...]
"""The tokens of a word."""

Found = dict[str, tuple[float, list[Path]]]
"""Words with their probability so far, and the ways to write them."""
Beginning = tuple[float, Path, Iterator[tuple[float, Path]]]
"""Minus the probability of a path, the path, and the less likely ones that differ in its last token."""

ROWS = 16
MAX_EXPANDED = 512
"""Beginnings of words that are followed, at most."""
FLOOR = 1e-6
"""Less likely beginnings are not followed."""

# Word characters, or a byte of a character that is not whole yet.
_CONTINUES = re.compile(r"[\w\ufffd]|['\u2019]\w")
_IN_WORD = re.compile(r"(?:[\w\ufffd]|\w['\u2019])\Z")
_OPEN = re.compile(r"[^\S\n]*(?:[\w\ufffd]+(?:['\u2019][\w\ufffd]+)*)?")


@dataclass(frozen=True, slots=True)
class NextWord:
    """A word with the white space before it, as the model would write it."""

    text: str
    probability: float
    paths: tuple[Path, ...]
    """The ways to write it in tokens that were found."""


class NextWords:
    """The words that may follow one prompt. Raises `UsageError` for a tokenizer that is not byte-level."""

    def __init__(self, engine: Engine, ids: Sequence[int], longer: Tensor | None = None) -> None:
        """``longer`` is `continuing_tokens` of the model, where it is known already."""
        if len(ids) >= engine.config.n_positions:
            raise PromptTooLong(
                f"the prompt of {len(ids)} tokens leaves no room in the context of "
                f"{engine.config.n_positions}"
            )
        self._longer = continuing_tokens(engine) if longer is None else longer
        assert engine.tokenizer is not None
        self._model, self._tokenizer = engine.model, engine.tokenizer
        self._tokens, self._room = len(ids), engine.config.n_positions - len(ids)
        self._slots = self._model.new_slots()
        self._prompt = self._slots.new()
        (self._first,) = self._read([(self._prompt, 0, ids)])  # [V]
        self._in_word = _IN_WORD.search(self._tokenizer.decode(ids)) is not None

    def likeliest(self, count: int) -> tuple[list[NextWord], bool]:
        """The ``count`` likeliest words, best first, and whether the search could be finished.

        Best-first: a word is never likelier than its beginning, so the search ends when no beginning that
        is left is likelier than the words found. A word that is likely only by many unlikely ways to write
        it may be missed.
        """
        found: Found = {}
        frontier: list[Beginning] = []
        begins = self._first * ~self._longer if self._in_word else self._first
        _push_next(frontier, self._children((), 1.0, begins))
        expanded = 0
        while True:
            batch: list[tuple[float, Path]] = []
            while len(batch) < ROWS and frontier and -frontier[0][0] > _threshold(found, count):
                negative, path, siblings = heapq.heappop(frontier)
                _push_next(frontier, siblings)
                if self._is_open(path):
                    batch.append((-negative, path))
                else:
                    _add(found, _word(self._text(path)), -negative, path)
            if not batch:
                break
            expanded += len(batch)
            if expanded > MAX_EXPANDED:
                break
            after = self._after([path for _, path in batch])
            for (reached, path), probabilities in zip(batch, after, strict=True):
                self._close(path, reached, probabilities, found)
                _push_next(frontier, self._children(path, reached, probabilities))
        words = [NextWord(text, p, tuple(paths)) for text, (p, paths) in found.items()]
        words.sort(key=lambda word: (-word.probability, word.text))
        return words[:count], expanded <= MAX_EXPANDED

    def probability(self, paths: Sequence[Path]) -> float:
        """The probability of a word that is written in one of ``paths``."""
        total = 0.0
        for path in paths:
            if len(path) > self._room:
                continue
            probability = float(self._first[path[0]])
            for length in range(1, len(path)):
                probability *= float(self._after([path[:length]])[0][path[length]])
            if self._is_open(path):
                probability *= self._ending(self._after([path])[0])
            total += probability
        return total

    def path_of(self, prompt: str, word: str) -> Path:
        """The tokens of ``word`` after ``prompt``; a space is put between them where there is none."""
        spaced = word if not prompt or prompt[-1].isspace() or word[:1].isspace() else f" {word}"
        return tuple(self._tokenizer.encode(spaced))

    def _children(self, path: Path, reached: float, probabilities: Tensor) -> Iterator[tuple[float, Path]]:
        """What may follow ``path``, of probability ``reached``, the likeliest first."""
        if path and self._text(path).strip():
            probabilities = probabilities * self._longer
        ordered, tokens = (probabilities * reached).sort(descending=True)
        number = int((ordered > FLOOR).sum())
        for probability, token in zip(ordered[:number].tolist(), tokens[:number].tolist(), strict=True):
            yield probability, (*path, token)

    def _close(self, path: Path, reached: float, probabilities: Tensor, found: Found) -> None:
        """The word that ends with ``path``; white space alone is none."""
        text = self._text(path)
        if text.strip():
            _add(found, text, reached * self._ending(probabilities), path)

    def _ending(self, probabilities: Tensor) -> float:
        """The probability [V] of all tokens that do not make a word longer."""
        return float(probabilities[~self._longer].sum())

    def _is_open(self, path: Path) -> bool:
        """Whether ``path`` may be the beginning of a longer word."""
        return len(path) < self._room and _OPEN.fullmatch(self._text(path)) is not None

    def _text(self, path: Path) -> str:
        return self._tokenizer.decode(path)

    def _after(self, paths: Sequence[Path]) -> Tensor:
        """The probabilities [B, V] of what follows each path, float64."""
        copies = [self._slots.new() for _ in paths]
        for copy in copies:
            self._slots.copy(self._prompt, copy, self._tokens)
        found = self._read([(copy, self._tokens, path) for copy, path in zip(copies, paths, strict=True)])
        for copy in copies:
            self._slots.free(copy)
        return found

    @torch.inference_mode()
    def _read(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
        """The probabilities [B, V] of what follows parts of a batch (`Batch.of`), float64 on the CPU."""
        batch = Batch.of(parts)
        hidden = self._model.hidden_states(batch, self._slots)
        logits = self._model.logits(hidden[batch.wanted.tolist()])
        check_finite(logits.amax(dim=-1))
        return logits.cpu().double().softmax(dim=-1)


def continuing_tokens(engine: Engine) -> Tensor:
    """[V] bool: the tokens that make a word before them longer. Raises `UsageError` as `NextWords` does."""
    tokenizer = engine.tokenizer
    if tokenizer is None or not tokenizer.byte_level:
        raise UsageError("words need a model with a byte-level tokenizer, as GPT-2's is")
    texts = (tokenizer.decode([token]) for token in range(engine.config.vocab_size))
    return torch.tensor([_CONTINUES.match(text) is not None for text in texts])


def _word(text: str) -> str:
    """The first word of ``text``, white space before it included; a mark of punctuation is one."""
    match = _OPEN.match(text)
    return match[0] if match and match[0].strip() else text


def _push_next(frontier: list[Beginning], siblings: Iterator[tuple[float, Path]]) -> None:
    """Put the likeliest of ``siblings`` into the heap; it brings the next one when it is taken out."""
    for probability, path in siblings:
        heapq.heappush(frontier, (-probability, path, siblings))
        return


def _threshold(found: Found, count: int) -> float:
    """The probability of the ``count``-th likeliest word found; 0 while there are fewer."""
    if len(found) < count:
        return 0.0
    return heapq.nlargest(count, (probability for probability, _ in found.values()))[-1]


def _add(found: Found, text: str, probability: float, path: Path) -> None:
    before, paths = found.get(text, (0.0, []))
    found[text] = (before + probability, [*paths, path])
