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
from gpt2cli.analysis.windows import Window, WindowOptions, by_length, windows
from gpt2cli.core.engine import Engine
from gpt2cli.core.torch_gpt2 import TorchGPT2

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""Tokens that go through the model at once; one text always does."""
GROUP_TOKENS = 4
"""Windows are gathered, and sorted by length, in groups of so many batches."""


@dataclass(frozen=True, slots=True)
class WindowScore:
    """A window, what it adds to the totals, and the scores of its tokens from ``window.first`` on."""

    window: Window
    totals: Totals
    scores: Scores


class Batcher:
    """Runs any number of texts through a model, some at once."""

    def __init__(self, model: TorchGPT2, batch_tokens: int | None = None) -> None:
        self._model = model
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, 2048)

    def score(
        self,
        rows: Sequence[Sequence[int]],
        firsts: Sequence[int],
        *,
        details: bool = False,
        top: int = 0,
        tick: Callable[[], None] = lambda: None,
    ) -> list[Scores]:
        """`score_rows` of them all. ``tick`` is called after each batch. Raises what `score_rows` raises."""
        found: dict[int, Scores] = {}
        for batch in by_length([len(row) - 1 for row in rows], self.batch_tokens):
            parts = score_rows(
                self._model, [rows[n] for n in batch], [firsts[n] for n in batch], details=details, top=top
            )
            found.update(zip(batch, parts, strict=True))
            tick()
        return [found[n] for n in range(len(rows))]


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
        scored = [window for window in group if window.scored]
        found = iter(
            self._batcher.score(
                [window.ids for window in scored],
                [window.first for window in scored],
                details=self._details,
                top=self._top,
                tick=tick,
            )
        )
        scores = [next(found) if window.scored else _nothing() for window in group]
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
