"""One run of `batch` over its input: what is there, what is left, the engine, and what is said."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.batch.rows import Defaults
from gpt2cli.batch.run import Present, Run, Tally, Work, drop_lines
from gpt2cli.batch.source import Source
from gpt2cli.cli.batch_flags import Job
from gpt2cli.cli.loading import FoundModel, load_engine, model_hash, served_model
from gpt2cli.errors import Gpt2cliError
from gpt2cli.jobs.manifest import read_manifest, write_manifest
from gpt2cli.jobs.rowfile import RowFile
from gpt2cli.terminal.rows_progress import RowsProgress
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.batch.engine import Engine


class Session:
    """One run over a source that is read, into a file that is locked, or to stdout."""

    def __init__(self, job: Job, source: Source, rows: RowFile | None) -> None:
        self._job, self._source, self._rows = job, source, rows
        self._terminal = job.terminal

    def run(self) -> None:
        """Do it all. Raises `Gpt2cliError`, and what a signal asked for, at the end."""
        job, source = self._job, self._source
        self._check_same()
        part = source.part(job.shard)
        present = Present() if self._rows is None else self._present(self._rows)
        defaults = Defaults(job.defaults, job.seed, job.fill)
        work, tally = Work.of(source, defaults, part, present, job.flags.form)
        self._say_before(work.strangers, tally)
        self._keep_manifest(tally)
        if len(work.todo):
            self._run(work, tally)
        self._keep_manifest(tally)
        self._end(tally)

    def _run(self, work: Work, tally: Tally) -> None:
        """Have what is left answered."""
        terminal, name = self._terminal, one_line(Path(self._source.name).name)
        with RowsProgress(terminal, name, tally.rows) as progress:

            def told(now: Tally) -> None:
                progress.move(now.done, now.failed, now.tokens, now.cost, now.cost_done)

            with contextlib.closing(self._engine(progress.warn)) as engine:
                started = time.perf_counter()
                run = Run(work, tally, self._write, told)
                terminal.signals.soften(run.stop)
                run.run(engine)
                took = time.perf_counter() - started
                # A first signal that comes only now must not tear what is being written.
                terminal.signals.soften(lambda: None)
        if self._rows is not None:
            self._rows.sync()
        self._say_after(tally, took)

    def _check_same(self) -> None:
        """The file is locked only now: somebody may have written it in between. Raises `UsageError`."""
        if self._rows is not None and self._job.manifest is not None and self._rows.size:
            earlier = read_manifest(self._rows.path)
            if earlier is not None:
                self._job.manifest.check_against(earlier, self._rows.path)

    def _present(self, rows: RowFile) -> Present:
        """What is there; damaged rows, and with ``--retry-errors`` those with errors, are taken out."""
        present = Present.of(rows)
        retry = self._job.flags.retry_errors
        if present.damaged:
            self._terminal.warn(f"{rows.path}: {present.damaged:,} damaged lines are dropped")
        if present.damaged or (retry and present.failed):
            drop_lines(rows, failed=retry)
            present = Present.of(rows)
        return present

    def _engine(self, warn: Callable[[str], None]) -> Engine:
        """What answers the rows; ``warn`` is told what a person should know meanwhile."""
        job = self._job
        if not isinstance(job.model, FoundModel):
            from gpt2cli.batch.server import ServerEngine

            return ServerEngine(job.model, job.flags.slots, warn)
        served = served_model(job.model)
        if served.problem:
            warn(served.problem)
        if job.flags.ray is not None:
            from gpt2cli.batch.cluster import ClusterEngine, Plan

            resolved = job.model.resolved
            plan = Plan(
                model=resolved.reference,
                revision=resolved.revision if resolved.stored is not None else None,
                model_hash=model_hash(job.model),
                load=replace(job.model.load, converted=None),
                slots=job.flags.slots,
                workers=job.flags.workers,
            )
            return ClusterEngine(job.flags.ray, plan, warn)
        served.engine = load_engine(self._terminal, job.model)
        with self._terminal.signals.deferred():
            from gpt2cli.batch.local import LocalEngine
        return LocalEngine(served, job.flags.slots)

    def _write(self, data: bytes) -> None:
        if self._rows is not None:
            self._rows.append(data)
        else:
            self._terminal.write(data.decode("ascii"))

    def _keep_manifest(self, tally: Tally) -> None:
        if self._job.manifest is None or self._job.flags.target is None:
            return
        complete = tally.done >= tally.rows
        manifest = replace(self._job.manifest, source=self._source.hash, rows=tally.rows, complete=complete)
        write_manifest(self._job.flags.target, manifest)

    # What is said.

    def _say_before(self, strangers: int, tally: Tally) -> None:
        terminal, target = self._terminal, self._job.flags.target
        if strangers:
            terminal.warn(f"{target}: {strangers:,} of its rows are not in {self._source.name}; they stay")
        if tally.before:
            going_on = "; going on" if tally.before < tally.rows else ""
            terminal.note(f"{target}: {tally.before:,} of {tally.rows:,} rows are done{going_on}")
        if self._job.flags.seed is None and not tally.before:
            terminal.note(f"seed {self._job.seed}")

    def _say_after(self, tally: Tally, took: float) -> None:
        rows = tally.done - tally.before
        speed = f" · {tally.tokens / took:,.1f} tokens/s" if took > 0 and tally.tokens else ""
        self._terminal.note(f"{rows:,} rows · {tally.tokens:,} tokens in {took:.1f} s{speed}")

    def _end(self, tally: Tally) -> None:
        """Raise what the run came to, unless all is well."""
        received, target = self._terminal.signals.received, self._job.flags.target
        if received is not None:
            kept = "; the same command goes on" if target is not None else ""
            self._terminal.note(f"interrupted: {tally.done:,} of {tally.rows:,} rows are done{kept}")
            raise received
        if tally.failed:
            where = f" in {target}" if target is not None else ""
            rows = "row" if tally.rows == 1 else "rows"
            have = "has" if tally.failed == 1 else "have"
            raise Gpt2cliError(
                f"{tally.failed:,} of {tally.rows:,} {rows} {have} an error{where}",
                hint="each has a line that says what it is; --retry-errors runs them again"
                if target is not None
                else "each has a line that says what it is",
            )
