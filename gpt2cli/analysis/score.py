"""Scoring texts of any length and number: windows in, sums out, in bounded memory.

The method for texts longer than the context is that of the Hugging Face perplexity guide
(docs/source/en/perplexity.md of transformers); `gpt2cli.analysis.windows` cuts as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gpt2cli.analysis.logprobs import Scores, score_rows
from gpt2cli.analysis.totals import TokenUnits, Totals
from gpt2cli.analysis.windows import Window, WindowOptions, in_order_of_length, windows
from gpt2cli.core.cache import KVCache
from gpt2cli.core.engine import Engine
from gpt2cli.core.model import GPT2

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""Tokens that go through the model at once, padding included; one window always does."""
PACK_AT_ONCE = 40_000_000
"""How many weights each batch after the first packs for those to come: about half a second."""
GROUP_TOKENS = 4
"""Windows are gathered, and sorted by length, in groups of so many batches."""


@dataclass(frozen=True, slots=True)
class WindowScore:
    """A window, what it adds to the totals, and the scores of its tokens from ``window.first`` on."""

    window: Window
    totals: Totals
    scores: Scores


class Batcher:
    """Runs many texts through a model, texts of like length together, in one buffer for keys and values."""

    def __init__(self, model: GPT2, batch_tokens: int | None = None) -> None:
        self._model = model
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, 2048)
        self._cache: KVCache | None = None

    def score(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int], *, details: bool = False, top: int = 0
    ) -> list[Scores]:
        """`score_rows` in one batch. Raises what that raises."""
        longest = max(map(len, rows)) - 1
        # A long text pays for the packing, one batch does not.
        if self._cache is not None:
            self._model.weights.pack(PACK_AT_ONCE)
        cache = self._cache
        if cache is None or cache.rows != len(rows) or not longest <= cache.capacity <= 2 * longest:
            self._cache = None
            cache = self._cache = self._model.new_cache(len(rows), longest)
        return score_rows(self._model, rows, firsts, details=details, top=top, cache=cache)


class Scorer:
    """Scores windows in batches, in the order they come in."""

    def __init__(
        self, engine: Engine, *, details: bool = False, top: int = 0, batch_tokens: int | None = None
    ) -> None:
        self._details, self._top = details or top > 0, top
        self._batcher = Batcher(engine.model, batch_tokens)
        config = engine.config
        self._units = TokenUnits(engine.tokenizer, config.vocab_size, config.boundary_ids)

    def groups(
        self,
        found: Iterable[Window],
        *,
        whole_texts: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[list[WindowScore]]:
        """The windows with their scores, group after group; with ``whole_texts`` a group ends with a text.

        ``tick`` is called after each batch. Raises `ModelFileError` where the model computes no numbers.
        """
        group: list[Window] = []
        tokens = 0
        for window in found:
            group.append(window)
            tokens += len(window.ids)
            enough = tokens >= GROUP_TOKENS * self._batcher.batch_tokens
            if enough and (window.last or not whole_texts):
                yield self._score(group, tick)
                group, tokens = [], 0
        if group:
            yield self._score(group, tick)

    def _score(self, group: Sequence[Window], tick: Callable[[], None]) -> list[WindowScore]:
        scores = [_nothing()] * len(group)
        for batch in in_order_of_length(group, self._batcher.batch_tokens):
            rows, firsts = [group[n].ids for n in batch], [group[n].first for n in batch]
            found = self._batcher.score(rows, firsts, details=self._details, top=self._top)
            for n, part in zip(batch, found, strict=True):
                scores[n] = part
            tick()
        return [
            WindowScore(window, self._totals(window, part), part)
            for window, part in zip(group, scores, strict=True)
        ]

    def _totals(self, window: Window, scores: Scores) -> Totals:
        nll, scored = scores.nll, window.scored
        if not scored:
            return Totals(unscored=window.fresh, windows=bool(window.ids))
        words, size = self._units.count(torch.tensor(window.ids), window.first)
        guide_tokens = window.fresh - 1
        return Totals(
            tokens=scored,
            unscored=window.fresh - scored,
            nll=nll,
            words=words,
            bytes=size,
            windows=1,
            guide_nll=nll / scored * guide_tokens,
            guide_tokens=guide_tokens,
        )


def _nothing() -> Scores:
    none = torch.zeros(0)
    return Scores(none.long(), none, none.long(), none)


def score_text(engine: Engine, ids: Sequence[int], options: WindowOptions | None = None) -> Totals:
    """The totals of one text of any length, given as ids. Raises what `Scorer.groups` does."""
    options = options or WindowOptions.of(engine.config.n_positions)
    totals = Totals()
    for group in Scorer(engine).groups(windows(None, [ids], options)):
        for part in group:
            totals.add(part.totals)
    return totals
