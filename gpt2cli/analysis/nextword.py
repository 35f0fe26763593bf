"""The next whole word and its probability, where a token may be only a part of a word.

The probability of a word is that of its tokens, times that of all tokens after them that do not make the
word longer. So " law" and " lawyer" are two words whose probabilities can be compared, and the
probabilities of all words add up to 1. A mark of punctuation and a line break count as words.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.core.decode import prefill
from gpt2cli.core.engine import Engine
from gpt2cli.core.sampling import check_finite
from gpt2cli.errors import PromptTooLong, UsageError
from gpt2cli.text.tokenizer import Tokenizer

Path = tuple[int, ...]
"""The tokens of a word."""

ROWS = 16
MAX_EXPANDED = 512
"""Beginnings of words that are followed, at most."""
FLOOR = 1e-6
"""Less likely beginnings are not followed."""

# Word characters, or a byte of a character that is not whole yet.
_CONTINUES = re.compile(r"[\w\ufffd]|['\u2019]\w")
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

    def __init__(self, engine: Engine, ids: Sequence[int]) -> None:
        if engine.tokenizer is None or not engine.tokenizer.byte_level:
            raise UsageError("words need a model with a byte-level tokenizer, as GPT-2's is")
        if len(ids) >= engine.config.n_positions:
            raise PromptTooLong(
                f"the prompt of {len(ids)} tokens leaves no room in the context of "
                f"{engine.config.n_positions}"
            )
        self._model, self._tokenizer = engine.model, engine.tokenizer
        self._room = engine.config.n_positions - len(ids)
        self._longer = continuing_tokens(engine.tokenizer, engine.config.vocab_size)
        self._cache = self._model.new_cache(1, len(ids))
        logits = prefill(self._model, self._cache, ids)
        check_finite(logits)
        self._first = logits[0].double().softmax(dim=-1)  # [V]

    def likeliest(self, count: int) -> tuple[list[NextWord], bool]:
        """The ``count`` likeliest words, best first, and whether the search could be finished.

        Best-first: a word is never likelier than its beginning, so the search ends when no beginning that
        is left is likelier than the words found.
        """
        found: dict[str, tuple[float, list[Path]]] = {}
        frontier: list[tuple[float, Path]] = []
        self._branch((), 1.0, self._first, found, frontier, FLOOR)
        expanded = 0
        while frontier and -frontier[0][0] > _threshold(found, count):
            if expanded >= MAX_EXPANDED:
                break
            batch = [heapq.heappop(frontier) for _ in range(min(ROWS, len(frontier)))]
            expanded += len(batch)
            after = self._after([path for _, path in batch])
            for (negative, path), probabilities in zip(batch, after, strict=True):
                reached = max(FLOOR, _threshold(found, count))
                self._close(path, -negative, probabilities, found)
                self._branch(path, -negative, probabilities, found, frontier, reached)
        words = [NextWord(text, p, tuple(paths)) for text, (p, paths) in found.items()]
        words.sort(key=lambda word: (-word.probability, word.text))
        best = words[:count]
        finished = not frontier or -frontier[0][0] <= _threshold(found, count)
        return best, finished

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

    def _branch(
        self,
        path: Path,
        reached: float,
        probabilities: Tensor,
        found: dict[str, tuple[float, list[Path]]],
        frontier: list[tuple[float, Path]],
        floor: float,
    ) -> None:
        """What may follow ``path``, of probability ``reached``: words that end at once, and beginnings."""
        likely = probabilities * reached > floor
        if path and self._text(path).strip():
            likely &= self._longer
        for token in likely.nonzero().squeeze(1).tolist():
            longer = (*path, token)
            probability = reached * float(probabilities[token])
            if self._is_open(longer):
                heapq.heappush(frontier, (-probability, longer))
            else:
                _add(found, _word(self._text(longer)), probability, longer)

    def _close(
        self, path: Path, reached: float, probabilities: Tensor, found: dict[str, tuple[float, list[Path]]]
    ) -> None:
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

    @torch.inference_mode()
    def _after(self, paths: Sequence[Path]) -> Tensor:
        """The probabilities [B, V] of what follows each path, float64."""
        counts = [len(path) for path in paths]
        ids = torch.zeros(len(paths), max(counts), dtype=torch.long)
        for row, path in enumerate(paths):
            ids[row, : len(path)] = torch.tensor(path)
        cache = self._cache.expand(len(paths))
        logits = self._model.forward(ids.to(self._model.device), cache, counts)
        return logits.double().softmax(dim=-1)


def continuing_tokens(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """[V] bool: the tokens that make a word before them longer."""
    texts = (tokenizer.decode([token]) for token in range(vocab_size))
    return torch.tensor([_CONTINUES.match(text) is not None for text in texts])


def _word(text: str) -> str:
    """The first word of ``text``, white space before it included; a mark of punctuation is one."""
    match = _OPEN.match(text)
    return match[0] if match and match[0].strip() else text


def _threshold(found: dict[str, tuple[float, list[Path]]], count: int) -> float:
    """The probability of the ``count``-th likeliest word found; 0 while there are fewer."""
    best = heapq.nlargest(count, (probability for probability, _ in found.values()))
    return best[-1] if len(best) == count else 0.0


def _add(found: dict[str, tuple[float, list[Path]]], text: str, probability: float, path: Path) -> None:
    before, paths = found.get(text, (0.0, []))
    found[text] = (before + probability, [*paths, path])
