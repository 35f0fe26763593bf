"""Sequences to text, many at once: the only decode loop of the project."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpt2cli.core.backend import Backend, Batch, Floats
from gpt2cli.core.drafts import Speculation
from gpt2cli.core.results import Chunk
from gpt2cli.core.sampling import token_logprobs
from gpt2cli.core.sequence import Group, Joint, Sequence

PREFILL_CHUNK = 512
"""The most tokens of prompts in one pass, so that texts that run go on beside a long one."""
SCORED_CHUNK = 128
"""The most tokens of one pass that each want logits after them, a row of the whole vocabulary."""
ROWS = 32
"""Sequences that run at a time; more gain little, and their keys and values take memory."""


class Step(NamedTuple):
    """A token of one sequence, or its end, or both."""

    sequence: Sequence
    chunks: list[Chunk]


class Portion(NamedTuple):
    """What a sequence feeds in one pass: so many tokens of its text, and drafts after them."""

    sequence: Sequence
    slot: int
    tokens: int
    drafts: list[int]

    def ids(self) -> list[int]:
        """The tokens of the pass."""
        return self.sequence.next_ids(self.tokens) + self.drafts

    @property
    def whole(self) -> bool:
        """Whether nothing of the text is left to feed: then there is something to draw from."""
        return self.tokens == self.sequence.unread

    @property
    def decodes(self) -> bool:
        """Whether it is the token drawn last, and no part of a prompt or of a window read again."""
        return self.sequence.unread == 1 and self.sequence.new_tokens > 0

    @property
    def logits(self) -> int:
        """How many rows of logits [V] are wanted: after the text, and after each draft; of a prompt that is
        scored after each token.
        """
        if self.sequence.scoring:
            return self.tokens
        return 1 + len(self.drafts) if self.whole else 0


class Ready(NamedTuple):
    """Logits [1 + D, V] of a sequence to draw from, and the token where it is drawn already."""

    sequence: Sequence
    logits: Floats
    token: int | None


class Scheduler:
    """Admits groups of sequences, composes flat batches, draws, and retires what has ended.

    A sequence is fed whatever its slot does not hold yet: a prompt in parts, then each token that is drawn,
    a whole window after it has moved. When its slot holds all, the logits after it are drawn from. Rows do
    not depend on each other, so they join and leave between any two steps.

    Behind the token drawn last a sequence may be fed drafts (`core/drafts.py`). As long as what is drawn
    equals them, it is drawn on from the logits of the same pass.
    """

    def __init__(self, backend: Backend, *, rows: int | None = None, beside: int | None = None) -> None:
        """``rows`` sequences run at a time, `ROWS` without it; ``beside`` are the tokens of prompts in a pass
        that texts take part in too, and more where more prompts wait than texts run; without it as many as
        in any pass.
        """
        self._backend = backend
        self._most_rows, self._beside = rows, beside
        self.speculation = Speculation(backend)
        self._context = backend.config.n_positions
        self._waiting: deque[Sequence] = deque()
        self._rows: list[Sequence] = []
        self._ready: deque[Ready] = deque()

    def admit(self, groups: list[Group]) -> None:
        """Take in the groups of one request; they begin as soon as there is room for them."""
        if groups and groups[0].options.rng == "transformers":
            joint = Joint(groups)
            for group in groups:
                group.joint = joint
        self._waiting.extend(group.reader for group in groups)

    def drop(self, groups: Iterable[Group]) -> None:
        """Forget groups, ended or not, and free their slots; a slot that was lent stays as it is."""
        for group in groups:
            members = {group.reader, *group.sequences}
            self._waiting = deque(each for each in self._waiting if each not in members)
            self._ready = deque(entry for entry in self._ready if entry.sequence not in members)
            for sequence in members:
                self._leave(sequence)
            group.logits = None

    @property
    def drawing(self) -> bool:
        """Whether tokens of the last pass are still to be drawn: the next step needs no other pass."""
        return bool(self._ready)

    def run(self) -> Iterator[Step | None]:
        """One step after the other until nothing is left to do; None after a pass that read a prompt.

        The caller may admit, drop and stop between any two. Raises `ModelFileError` for logits that are no
        numbers.
        """
        while self._waiting or self._rows or self._ready:
            self._enter()
            if self._ready:
                yield self._draw()
            elif self._forward():
                yield None

    def _enter(self) -> None:
        """Give slots to those who wait, as long as there are rows left; joint draws need all of theirs."""
        most = self._most_rows or ROWS
        while self._waiting and (len(self._rows) < most or self._waiting[0].group.joint is not None):
            sequence = self._waiting.popleft()
            group = sequence.group
            if sequence.slot is None:
                sequence.slot = self._backend.new_slot()
            self._rows.append(sequence)
            if sequence is not group.reader:
                self._fork(sequence, sequence.slot)

    def _fork(self, sequence: Sequence, slot: int) -> None:
        """Begin a sequence whose prompt is read already."""
        group = sequence.group
        assert group.logits is not None and group.reader.slot is not None
        logits, tokens = group.logits, len(group.prompt)
        self._backend.copy_slot(group.reader.slot, slot, tokens)
        sequence.present = tokens
        if sequence is group.sequences[-1]:
            group.logits = None
            self._leave(group.reader)
        self._receive(sequence, logits)

    def _forward(self) -> bool:
        """One pass over all rows; whether a prompt, or a window again, was read in it."""
        fed = self._portions()
        parts = [(each.slot, each.sequence.present, each.ids()) for each in fed]
        ends = itertools.accumulate(len(ids) for *_, ids in parts)
        wanted = [n for each, end in zip(fed, ends, strict=True) for n in range(end - each.logits, end)]
        reading = not all(each.decodes for each in fed)
        batch = Batch.of(parts, wanted)
        started = time.perf_counter()
        logits = self._backend.forward(batch)
        if not reading:
            self.speculation.times.record(len(batch), time.perf_counter() - started)
        for group in {each.sequence.group for each in fed if each.sequence.new_tokens}:
            group.steps += 1
        at = 0
        for each in fed:
            row, rows, whole = each.sequence, each.logits, each.whole
            found = logits[at : at + rows]
            at += rows
            if row.scoring:
                row.group.score(row.present, found)
                found = found[-1:]
            row.present += each.tokens
            row.drafts = each.drafts
            row.group.drafted += len(each.drafts)
            if whole:
                self._read(row, found)
        return reading

    def _portions(self) -> list[Portion]:
        """What each row that has something to feed feeds in this pass."""
        fed, budget, scored = [], PREFILL_CHUNK, SCORED_CHUNK
        running = sum(row.new_tokens > 0 and row.unread == 1 for row in self._rows)
        if self._beside is not None and running:
            # More where more wait than run: each that runs waits for as many of those as there are for it.
            budget = min(budget, self._beside * max(1, len(self._rows) // running - 1))
        for row in self._rows:
            row.make_room(self._context)
            count = row.unread
            if count > 1 or row.scoring:
                count = min(count, budget, scored if row.scoring else count)
                budget -= count
                scored -= count if row.scoring else 0
            if count:
                assert row.slot is not None
                fed.append(Portion(row, row.slot, count, []))
        if not all(each.decodes for each in fed):
            return fed
        drafts = self.speculation.propose([each.sequence for each in fed])
        return [each._replace(drafts=drafts.get(each.sequence, [])) for each in fed]

    def _read(self, sequence: Sequence, logits: Floats) -> None:
        """All of a sequence is in its slot, and these are the logits [1 + D, V] after it and its D drafts."""
        group = sequence.group
        group.prefilled()
        if sequence.index >= 0:
            self._receive(sequence, logits)
            return
        self._rows.remove(sequence)
        group.logits = logits
        self._waiting.extendleft(reversed(group.sequences))

    def _receive(self, sequence: Sequence, logits: Floats) -> None:
        """Have a token drawn from logits [1 + D, V], and as many more as drafts turn out to be right."""
        joint = sequence.group.joint
        if joint is None:
            self._ready.append(Ready(sequence, logits, None))
        else:
            held = joint.hold(sequence, logits[0])
            self._ready.extend(Ready(each, row[None], token) for each, row, token in held)

    def _draw(self) -> Step:
        sequence, rows, token = self._ready.popleft()
        group, logits = sequence.group, rows[0]
        if not group.max_new_tokens:
            self._leave(sequence)
            return Step(sequence, [sequence.end("length")])
        if token is None:
            token = group.sampler(logits, sequence.ids, sequence.seed, sequence.position)
        top, logprobs = group.options.logprobs, None
        if top is not None and token not in group.eos_ids:
            logprobs = token_logprobs(logits, token, top)
        drafts = sequence.drafts
        right = drafts[:1] == [token]
        if drafts:
            self.speculation.learn(sequence, right=right)
        chunks = sequence.take(token, logprobs, self._context)
        if sequence.finish_reason is not None:
            self._leave(sequence)
        elif right:
            self._ready.appendleft(Ready(sequence, rows[1:], None))
        return Step(sequence, chunks)

    def _leave(self, sequence: Sequence) -> None:
        """A sequence ends, or a reader is not needed any more: its row and its slot are free."""
        if sequence in self._rows:
            self._rows.remove(sequence)
        self.speculation.forget(sequence)
        lent = sequence.group.lent and sequence is sequence.group.reader
        if sequence.slot is not None and not lent:
            slot, sequence.slot = sequence.slot, None
            self._backend.free_slot(slot)
