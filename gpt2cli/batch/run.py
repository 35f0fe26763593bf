"""From the rows that are not done yet to lines of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt2cli.api.errors import ApiError
from gpt2cli.batch.engine import Engine, Finished, Row
from gpt2cli.batch.output import Form, line_of, read_written
from gpt2cli.batch.rows import KEY_BYTES, Defaults
from gpt2cli.batch.source import Keys, Numbers, Source
from gpt2cli.errors import UsageError
from gpt2cli.jobs.rowfile import RowFile

Write = Callable[[bytes], None]


@dataclass
class Tally:
    """How far a run is. ``cost`` is about tokens, read and drawn, of rows that were not done before."""

    rows: int
    """Of this part of the job, all of them."""
    done: int = 0
    failed: int = 0
    """Of those that are done."""
    before: int = 0
    """Rows that were done when this run began."""
    tokens: int = 0
    """Drawn in this run."""
    cost: int = 0
    cost_done: int = 0


@dataclass
class Present:
    """The rows that an output has already."""

    keys: bytearray = field(default_factory=bytearray)
    failed: set[bytes] = field(default_factory=set)
    damaged: int = 0

    @classmethod
    def of(cls, file: RowFile) -> Present:
        """What is in a file. Raises `Gpt2cliError`."""
        found = cls()
        for line in file.lines():
            written = read_written(line)
            if written is None:
                found.damaged += 1
                continue
            found.keys += written.key
            if written.failed:
                found.failed.add(written.key)
        return found

    def array(self) -> Keys:
        """The keys, as numpy has them."""
        return np.frombuffer(bytes(self.keys), dtype=f"S{KEY_BYTES}")


def drop_lines(file: RowFile, *, failed: bool) -> None:
    """Take out what is no row, and with ``failed`` the rows that came to nothing. Raises `Gpt2cliError`."""

    def wanted(line: bytes) -> bool:
        written = read_written(line)
        return written is not None and not (failed and written.failed)

    file.keep(wanted)


@dataclass(frozen=True, slots=True)
class Work:
    """The rows that a run is to do, in their order."""

    source: Source
    defaults: Defaults
    todo: Numbers
    form: Form
    strangers: int
    """Rows in the output that the input does not have."""

    @classmethod
    def of(
        cls, source: Source, defaults: Defaults, part: Numbers, present: Present, form: Form
    ) -> tuple[Work, Tally]:
        """What is left of ``part``, and how far it is."""
        if not present.keys:
            todo = source.by_length(part)
            return cls(source, defaults, todo, form, 0), Tally(len(part), cost=source.cost(todo))
        ours, there = source.index.key_array()[part], present.array()
        done = np.isin(ours, there)
        todo = source.by_length(part[~done])
        strangers = int((~np.isin(there, ours)).sum())
        failed = int(np.isin(ours[done], np.array(sorted(present.failed), dtype=f"S{KEY_BYTES}")).sum())
        count = int(done.sum())
        tally = Tally(len(part), done=count, failed=failed, before=count, cost=source.cost(todo))
        return cls(source, defaults, todo, form, strangers), tally


class Run:
    """One run over what is left. ``write`` is handed whole lines; ``told`` is called now and then."""

    def __init__(self, work: Work, tally: Tally, write: Write, told: Callable[[Tally], None]) -> None:
        self._work, self.tally, self._write, self._told = work, tally, write, told
        self._costs: dict[str, int] = {}
        self._stopped = False

    def stop(self) -> None:
        """End soon, with all that has finished written; safe to call from a signal handler."""
        self._stopped = True

    def run(self, engine: Engine) -> Tally:
        """Do it. Raises `Gpt2cliError`."""
        beats = engine.run(self._rows())
        for beat in beats:
            self.tally.tokens += beat.tokens
            self._put(list(beat.finished))
            self._told(self.tally)
            if self._stopped:
                break
        return self.tally

    def _rows(self) -> Iterator[Row]:
        """The rows that can be run; what is wrong with the others is written at once."""
        work = self._work
        for place in work.todo:
            if self._stopped:
                return
            number = int(place)
            asked, cost = work.source.row(number), work.source.index.costs[number]
            key = asked.key.hex()
            self._costs[key] = cost
            if asked.error is not None:
                self._put([Finished.refused(asked.id, key, asked.error)])
                continue
            try:
                row = asked.row(work.defaults)
            except UsageError as error:
                self._put([Finished.refused(asked.id, key, ApiError(400, str(error), param="prompt"))])
                continue
            yield row

    def _put(self, finished: list[Finished]) -> None:
        if not finished:
            return
        self._write(b"".join(line_of(each, self._work.form) for each in finished))
        for each in finished:
            self.tally.done += 1
            self.tally.failed += each.failed
            self.tally.cost_done += self._costs.pop(each.key, 0)
