"""Keeping the runs of a command: in the log, where it is on, and in the file of ``--record``.

Everything happens after the text is out, and nothing at all, not even an import, where nothing is to be kept.
A log that cannot be written costs one line of warning and neither text nor exit code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import check_writable
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.options import GenerateOptions
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.cli.run_record import DrawnText
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Stats
    from gpt2cli.runs.log import RunLog
    from gpt2cli.runs.record import RunModel, RunRecord

TURN_ON = "gpt2cli logs on"


class RunKeeper:
    """Keeps the runs of one command. `met` tells it of each model before the first run of it, `keep` of each
    run, and `close` ends it.
    """

    def __init__(self, terminal: Terminal, *, logs: bool, file: Path | None = None) -> None:
        self.warn: Callable[[str], None] = terminal.warn
        self._terminal, self._logs, self._file = terminal, logs, file
        self._models: dict[Path, ResolvedModel] = {}
        self._failed = False
        self._pending: dict[Path, list[int]] = {}
        """The numbers of logged runs whose model has no hash yet."""

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._logs or self._file is not None

    def met(self, model: ResolvedModel) -> None:
        """A model that runs may be of."""
        self._models[model.directory] = model

    def keep(
        self,
        command: str,
        engine: Engine,
        prompt: str,
        options: GenerateOptions,
        texts: Sequence[DrawnText],
        stats: Stats | None,
        *,
        prompt_ids: Sequence[int] | None = None,
        session: str | None = None,
        timings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a run of a model of this machine: ``options`` settled, ``texts`` as they were drawn, before
        anything is removed from them. A text without an end is one that was interrupted; nothing is kept
        where nothing came. Raises `Gpt2cliError` only where the file of ``--record`` cannot be written.
        """
        if not self.on or not any(map(_came, texts)):
            return
        from gpt2cli.cli.run_record import local_record

        model = self._models[engine.checkpoint.directory]
        record = local_record(
            command, engine, model, prompt, options, texts, stats, prompt_ids, session, timings
        )
        self._keep(record, model)

    def keep_remote(
        self,
        command: str,
        name: str,
        prompt: str,
        options: GenerateOptions,
        texts: Sequence[DrawnText],
        *,
        session: str | None = None,
        usage: Mapping[str, Any] | None = None,
        timings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a run of a model on a server; ``name`` is its address with the model."""
        if self._logs and any(map(_came, texts)):
            from gpt2cli.cli.run_record import remote_record

            self._keep(remote_record(command, name, prompt, options, texts, session, usage, timings), None)

    def close(self) -> None:
        """Find out the hashes of models that have none yet; a signal ends that."""
        pending, self._pending = self._pending, {}
        for directory, ids in pending.items():
            with self._warned(), self._open() as log:
                sha256 = self._hash(self._models[directory], log)
                if sha256 is not None:
                    log.set_hash(ids, sha256)

    def _keep(self, record: RunRecord, model: ResolvedModel | None) -> None:
        if self._logs:
            with self._warned(), self._open() as log:
                directory = None
                if model is not None:
                    record = replace(record, model=self._known(record.model, model, log))
                    by_path = model.stored is None or model.adapter is not None
                    directory = model.reference if by_path else None
                number = log.add(record, directory)
                if model is not None and record.model.sha256 is None:
                    self._pending.setdefault(model.directory, []).append(number)
        if self._file is not None:
            from gpt2cli.runs.record import write_record

            if model is not None and record.model.sha256 is None:
                record = replace(record, model=replace(record.model, sha256=self._hash(model, None)))
            write_record(self._file, record)

    def _open(self) -> RunLog:
        from gpt2cli.runs.log import BUSY_AGAIN_S, BUSY_S, RunLog

        return RunLog.open(busy_s=BUSY_AGAIN_S if self._failed else BUSY_S)

    def _known(self, named: RunModel, model: ResolvedModel, log: RunLog) -> RunModel:
        """``named`` with its hash, where that takes no reading of large files."""
        return replace(named, sha256=self._hash(model, log, only_known=True))

    def _hash(self, model: ResolvedModel, log: RunLog | None, *, only_known: bool = False) -> str | None:
        from gpt2cli.cli.loading import known_hashes
        from gpt2cli.runs.hashes import Stopped, hash_of_model

        signals = self._terminal.signals

        def stop() -> bool:
            return only_known or signals.received is not None

        try:
            return hash_of_model(model.directory, known_hashes(model), log, adapter=model.adapter, stop=stop)
        except (Stopped, OSError, Gpt2cliError):
            return None

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """What goes wrong with the log is one line, once."""
        try:
            yield
        except (Gpt2cliError, OSError, ImportError) as error:
            if not self._failed:
                self.warn(f"the run was not logged: {error}")
            self._failed = True


def _came(text: DrawnText) -> bool:
    return bool(text.text) or text.finish_reason not in (None, "interrupted")


def existing_log() -> RunLog | None:
    """The log, open; None where there is none. Raises `Gpt2cliError` where it cannot be read."""
    try:
        from gpt2cli.runs.log import RunLog
    except ImportError:
        raise Gpt2cliError(
            "this Python was built without SQLite", hint="the log of runs needs a Python with sqlite3"
        ) from None
    return RunLog.open_existing()


def open_keeper(terminal: Terminal, settings: Settings, file: Path | None = None) -> RunKeeper:
    """What keeps the runs of a command: the setting ``log``, and the file of ``--record``.

    Raises `UsageError` for a file that cannot be written.
    """
    if file is not None:
        if str(file) == "-":
            raise UsageError("--record needs a file: the text is on standard output")
        check_writable(file)
    return RunKeeper(terminal, logs=bool(settings.value("log")), file=file)
