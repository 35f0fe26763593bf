"""Speculative decoding: tokens are guessed, and verified together in one pass (Leviathan et al. 2023,
arXiv 2211.17192).

A pass over a few tokens costs little more than one over a single token, since the weights are read once. A
draft is right if the model itself draws it, with its own noise, from its own logits: then the logits after it
are there already. So the text is the same with any drafter, to the last bit where logits do not depend on the
batch. What a drafter changes is the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpt2cli.core.backend import Backend
from gpt2cli.core.draft_model import DraftModel
from gpt2cli.core.lookup import Lookup
from gpt2cli.core.pass_times import PassTimes
from gpt2cli.core.sequence import Sequence
from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import DRAFTS

Sequences = list[Sequence]

MAX_DRAFTS = 16
"""The most tokens that are guessed ahead of a text."""
MAX_IN_PASS = 128
"""Those of all texts in a pass: each takes a row of logits."""
WORTH = 1.03
"""How much faster a pass must promise to be for another draft to be added."""
HOPE = 0.05
"""What is less likely than this is not proposed."""


def worth_verifying(odds: list[list[float]], seconds: Callable[[int], float]) -> list[int]:
    """How many drafts of each text make the most tokens a second.

    ``odds`` has for each text the falling chances that a draft and all before it are right; ``seconds`` tells
    how long a pass over that many tokens takes.
    """
    counts = [0] * len(odds)
    ranked = sorted(((chance, row) for row, own in enumerate(odds) for chance in own), reverse=True)
    expected = float(len(odds))
    best, chosen = expected / seconds(len(odds)), 0
    for n, (chance, _) in enumerate(ranked, 1):
        expected += chance
        rate = expected / seconds(len(odds) + n)
        if rate > best * WORTH:
            best, chosen = rate, n
    for _, row in ranked[:chosen]:
        counts[row] += 1
    return counts


class Drafter(Protocol):
    """Where drafts come from. It may propose what it likes: a text does not depend on it."""

    def propose(self, rows: Sequences, limits: list[int], beside: int) -> list[list[int]]:
        """Up to ``limits`` tokens that may follow each text; ``beside`` other tokens are in the pass."""
        ...

    def learn(self, *, right: bool) -> None:
        """A draft, all before it being right, was right or not."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The text has ended."""
        ...


class LookupDrafts:
    """Drafts from the texts themselves, for requests with ``draft`` ``auto`` or ``lookup``."""

    def __init__(self, times: PassTimes) -> None:
        self._times = times
        self._lookups: dict[Sequence, Lookup] = {}

    def propose(self, rows: Sequences, limits: list[int], beside: int) -> list[list[int]]:
        """What followed earlier in a text: ``lookup`` takes what it finds, ``auto`` what promises to pay."""
        found = [self._look_up(row, limit) for row, limit in zip(rows, limits, strict=True)]
        counts = [len(drafts) for drafts, _ in found]
        careful = [n for n, row in enumerate(rows) if row.group.options.draft == "auto" and counts[n]]
        if careful:
            worth = [0] * len(careful)
            if self._times.known(beside + len(rows)):
                others = beside + len(rows) - len(careful) + sum(counts) - sum(counts[n] for n in careful)
                worth = worth_verifying(
                    [found[n][1] for n in careful], lambda tokens: self._times.of(others + tokens)
                )
            for n, count in zip(careful, worth, strict=True):
                counts[n] = count
        return [drafts[:count] for (drafts, _), count in zip(found, counts, strict=True)]

    def learn(self, *, right: bool) -> None:
        """Nothing: each lookup compares all that comes with what it would have proposed."""

    def forget(self, sequence: Sequence) -> None:
        """The text has ended."""
        self._lookups.pop(sequence, None)

    def _look_up(self, sequence: Sequence, limit: int) -> tuple[list[int], list[float]]:
        lookup = self._lookups.setdefault(sequence, Lookup())
        lookup.update(sequence.ids, len(sequence.group.prompt))
        return lookup.propose(sequence.ids, limit, HOPE)


class ModelDrafts:
    """Drafts by a smaller model, as many as have paid so far; none for a while where none did."""

    FIRST_TRUST, NEWS = 0.6, 0.05
    """How often a draft is right before any was seen; the weight of the latest one."""
    PATIENCE, MOST_PATIENCE = 16, 512
    """Passes without drafts after which one is tried again; twice as many each time, up to the second."""

    def __init__(self, model: DraftModel, times: PassTimes) -> None:
        self._model, self._times = model, times
        self._trust = self.FIRST_TRUST
        self._idle, self._patience = 0, self.PATIENCE

    def propose(self, rows: Sequences, limits: list[int], beside: int) -> list[list[int]]:
        """What the smaller model draws."""
        count = self._count(len(rows), beside)
        if not count:
            return [[] for _ in rows]
        counts = [min(count, limit) for limit in limits]
        try:
            return self._model.propose([*zip(rows, counts, strict=True)])
        except Gpt2cliError:
            # It computes no numbers, or there is no memory for it: the text does not depend on it.
            self._trust = 0.0
            return [[] for _ in rows]

    def learn(self, *, right: bool) -> None:
        """A draft, all before it being right, was right or not."""
        self._trust += self.NEWS * (right - self._trust)
        if right:
            self._patience = self.PATIENCE

    def forget(self, sequence: Sequence) -> None:
        """The text has ended."""
        self._model.forget(sequence)

    def close(self) -> None:
        """No more is wanted of the model."""
        self._model.close()

    def _count(self, rows: int, beside: int) -> int:
        """How many drafts a text should have in the next pass."""
        if not self._times.known(beside + rows):
            return 0
        if not self._model.times.known(rows):
            return 2
        expected, chance, each = float(beside + rows), 1.0, self._model.times.of(rows)
        best, count = expected / self._times.of(beside + rows), 0
        for n in range(1, MAX_DRAFTS + 1):
            chance *= self._trust
            expected += rows * chance
            rate = expected / (self._times.of(beside + rows * (n + 1)) + n * each)
            if rate > best * WORTH:
                best, count = rate, n
        if count:
            self._idle, self._patience = 0, self.PATIENCE
            return count
        self._idle += 1
        if self._idle <= self._patience:
            return 0
        self._idle, self._patience = 0, min(2 * self._patience, self.MOST_PATIENCE)
        return 1


class Speculation:
    """What is guessed for the texts of a scheduler, each as its request wants it.

    ``model`` serves requests whose ``draft`` names a model, ``lookup`` the others.
    """

    def __init__(self, backend: Backend) -> None:
        self.times = PassTimes()
        self.lookup: Drafter = LookupDrafts(self.times)
        self.model: Drafter | None = None
        self._context = backend.config.n_positions
        self._unasked = backend.batch_invariant
        # A draft that is wrong is taken back; else the whole text would be read again for each.
        self._rewinds = backend.info.cache == "keys-values"

    def draft_with(self, model: DraftModel | None) -> None:
        """Have this model guess, or none; the one before gives its slots back."""
        if isinstance(self.model, ModelDrafts):
            self.model.close()
        self.model = ModelDrafts(model, self.times) if model else None

    def propose(self, rows: Sequences) -> dict[Sequence, list[int]]:
        """What to verify in a pass over ``rows``, which have one token each to read."""
        drafts: dict[Sequence, list[int]] = {}
        for drafter in (self.lookup, self.model):
            own = [row for row in rows if drafter is not None and self._drafter_of(row) is drafter]
            if own and drafter is not None:
                most = min(MAX_DRAFTS, MAX_IN_PASS // len(rows))
                limits = [min(most, row.room(self._context)) for row in own]
                beside = len(rows) - len(own) + sum(map(len, drafts.values()))
                drafts |= zip(own, drafter.propose(own, limits, beside), strict=True)
        return drafts

    def learn(self, sequence: Sequence, *, right: bool) -> None:
        """A draft for the text, all before it being right, was right or not."""
        drafter = self._drafter_of(sequence)
        if drafter is not None:
            drafter.learn(right=right)

    def forget(self, sequence: Sequence) -> None:
        """The text has ended."""
        drafter = self._drafter_of(sequence)
        if drafter is not None:
            drafter.forget(sequence)

    def _drafter_of(self, row: Sequence) -> Drafter | None:
        """Unasked, texts are drafted for only where that changes nothing in them; for a model that cannot go
        back, never."""
        kind = row.group.options.draft
        if (
            kind == "off"
            or not self._rewinds
            or row.group.joint is not None
            or (kind == "auto" and not self._unasked)
        ):
            return None
        return self.lookup if kind in DRAFTS else self.model
