"""Drafts by a smaller model, which draws with the noise that the large one will draw with.

The noise of a token depends on seed, position and token alone (`core/random.py`). So two models that nearly
agree draw the same token, and more drafts are right than with independent draws (Daliri et al. 2024,
arXiv 2408.07978).
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from itertools import takewhile

from gpt2cli.core.backend import Backend, Batch, Floats
from gpt2cli.core.pass_times import PassTimes
from gpt2cli.core.sequence import Sequence

PREFILL_CHUNK = 512


class DraftModel:
    """A backend that reads along with texts of another one, in slots of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.times = PassTimes()
        """By the number of texts; drawing is part of it."""
        self._followed: dict[Sequence, _Followed] = {}
        self._kept: tuple[int, list[int]] | None = None
        """The slot of a text that has ended, and what it holds: the next may begin alike."""

    def propose(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        """For each text so many tokens that may follow it; fewer where it seems to end."""
        most = max(1, self._backend.config.n_positions // 2)
        counts = [min(count, most) for _, count in wanted]
        left = PREFILL_CHUNK // len(wanted)
        texts = [
            self._follow(sequence, count, left) for (sequence, _), count in zip(wanted, counts, strict=True)
        ]
        going = [n for n, count in enumerate(counts) if count]
        while going:
            parts = [(texts[n].slot, texts[n].present, texts[n].unread()) for n in going]
            started = time.perf_counter()
            logits = self._backend.forward(Batch.of(parts))
            for n, (_, _, read), row in zip(going, parts, logits, strict=True):
                texts[n].draw(row, len(read))
            # A text whose drafts were all right has two tokens to read; more are a prompt.
            if all(len(read) <= 2 for *_, read in parts):
                self.times.record(len(going), time.perf_counter() - started)
            going = [n for n in going if len(texts[n].drafts) < counts[n] and not texts[n].ends]
        # What becomes of them there must not change what was read here.
        return [[*text.drafts] for text in texts]

    def forget(self, sequence: Sequence) -> None:
        """The text has ended."""
        text = self._followed.pop(sequence, None)
        if text is None:
            return
        if self._kept is not None:
            self._backend.free_slot(self._kept[0])
        text.settle()
        self._kept = text.slot, sequence.ids[text.window :][: text.present]

    def close(self) -> None:
        """Give back all slots; the backend is its owner's."""
        slots = [text.slot for text in self._followed.values()]
        if self._kept is not None:
            slots.append(self._kept[0])
        for slot in slots:
            self._backend.free_slot(slot)
        self._followed, self._kept = {}, None

    def _follow(self, sequence: Sequence, count: int, left: int) -> _Followed:
        """The text in its slot, with room for ``count`` drafts; up to ``left`` tokens are left to be read."""
        text = self._followed.get(sequence)
        if text is None:
            text = self._followed[sequence] = self._begin(sequence)
        text.settle()
        context, group = self._backend.config.n_positions, sequence.group
        while len(sequence.ids) - text.window + count > context:
            text.window, text.present = text.window + max(1, context // 4), 0
        ahead = len(sequence.ids) - text.window - left
        if len(group.sequences) > 1 and text.window == 0:
            # The others begin with a copy.
            ahead = max(ahead, len(group.prompt))
        while text.present < ahead:
            part = text.unread()[: min(PREFILL_CHUNK, ahead - text.present)]
            self._backend.forward(Batch.of([(text.slot, text.present, part)], []))
            text.present += len(part)
        return text

    def _begin(self, sequence: Sequence) -> _Followed:
        """A slot for a text, with what another one has in common with it."""
        prompt = sequence.group.prompt
        for sibling in sequence.group.sequences:
            other = self._followed.get(sibling)
            if other is not None and other.window == 0 and other.present >= len(prompt):
                text = _Followed(sequence, self._backend.new_slot())
                self._backend.copy_slot(other.slot, text.slot, len(prompt))
                text.present = len(prompt)
                return text
        if self._kept is None:
            return _Followed(sequence, self._backend.new_slot())
        (slot, held), self._kept = self._kept, None
        text = _Followed(sequence, slot)
        pairs = zip(held, sequence.ids[:-1], strict=False)
        text.present = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return text


class _Followed:
    """One text: what of ``sequence.ids[window:]`` is in ``slot``, and the drafts that were read after it."""

    __slots__ = ("drafts", "known", "present", "sequence", "slot", "window")

    def __init__(self, sequence: Sequence, slot: int) -> None:
        self.sequence, self.slot = sequence, slot
        self.window = self.present = 0
        self.drafts: list[int] = []
        self.known = len(sequence.ids)
        """The length of the text when it was drafted from."""

    def settle(self) -> None:
        """The drafts that became the text stay; what stands in the slot behind them is gone."""
        ids = self.sequence.ids
        # The present ones count drafts that were read.
        self.present = min(self.present, self.known - self.window)
        for draft, token in zip(self.drafts[:-1], ids[self.known :], strict=False):
            if draft != token:
                break
            self.present += 1
        self.drafts, self.known = [], len(ids)

    def unread(self) -> list[int]:
        """What is not in the slot yet, of the text or of its drafts."""
        return [*self.sequence.ids[self.window :], *self.drafts][self.present :]

    def draw(self, logits: Floats, read: int) -> None:
        """Draw another draft from the logits [V] after a pass that has ``read`` so many tokens."""
        sequence = self.sequence
        self.present += read
        history, position = [*sequence.ids, *self.drafts], sequence.position + len(self.drafts)
        self.drafts.append(sequence.group.sampler(logits, history, sequence.seed, position))

    @property
    def ends(self) -> bool:
        """Whether the last draft ends the text."""
        return self.drafts[-1] in self.sequence.group.eos_ids
