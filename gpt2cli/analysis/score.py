"""Scoring texts of any length and number: windows in, sums out, in bounded memory.

The method for texts longer than the context is that of the Hugging Face perplexity guide
(docs/source/en/perplexity.md of transformers); `gpt2cli.analysis.windows` cuts as it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gpt2cli.analysis.batches import batch_size, gathered, run_by_length
from gpt2cli.analysis.logprobs import Scores, score_rows
from gpt2cli.analysis.totals import TokenUnits, Totals
from gpt2cli.analysis.windows import Window, WindowOptions, windows
from gpt2cli.core.engine import Engine
from gpt2cli.core.torch_model import TorchModel


@dataclass(frozen=True, slots=True)
class WindowScore:
    """A window, what it adds to the totals, and the scores of its tokens from ``window.first`` on."""

    window: Window
    totals: Totals
    scores: Scores


class Batcher:
    """Runs any number of texts through a model, some at once."""

    def __init__(self, model: TorchModel, batch_tokens: int | None = None) -> None:
        self._model = model
        self.batch_tokens = batch_size(model, batch_tokens)

    def score(
        self,
        rows: Sequence[Sequence[int]],
        firsts: Sequence[int],
        *,
        details: bool = False,
        top: int = 0,
    ) -> list[Scores]:
        """`score_rows` of them all. Raises what it raises."""

        def run(batch: list[tuple[Sequence[int], int]]) -> list[Scores]:
            texts, starts = zip(*batch, strict=True)
            return score_rows(self._model, texts, starts, details=details, top=top)

        # The last token of a text is only predicted.
        texts = list(zip(rows, firsts, strict=True))
        return run_by_length(texts, lambda text: len(text[0]) - 1, self.batch_tokens, run)


class Scorer:
    """Scores windows in batches, in the order they come in."""

    def __init__(
        self, engine: Engine, *, details: bool = False, top: int = 0, batch_tokens: int | None = None
    ) -> None:
        self._details, self._top = details or top > 0, top
        self._batcher = Batcher(engine.model, batch_tokens)
        config = engine.config
        self._units = TokenUnits(engine.tokenizer, config.vocab_size, config.boundary_ids)

    def groups(self, found: Iterable[Window], *, whole_texts: bool = False) -> Iterator[list[WindowScore]]:
        """The windows with their scores, group after group; with ``whole_texts`` a group ends with a text.

        Raises `ModelFileError` where the model computes no numbers.
        """
        groups = gathered(
            found,
            lambda window: len(window.ids),
            self._batcher.batch_tokens,
            lambda window: window.last or not whole_texts,
        )
        for group in groups:
            yield self._score(group)

    def _score(self, group: Sequence[Window]) -> list[WindowScore]:
        scored = [window for window in group if window.scored]
        found = iter(
            self._batcher.score(
                [window.ids for window in scored],
                [window.first for window in scored],
                details=self._details,
                top=self._top,
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
