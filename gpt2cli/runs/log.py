"""The log of runs: an SQLite database, readable by its owner alone.

Writing is a short transaction in WAL mode: readers never wait, writers wait for each other, and a process
that is killed leaves the database as it was. The table of words for searching (FTS5) is brought up to date by
who searches.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.options import shown
from gpt2cli.runs.database import connect, create, saying
from gpt2cli.runs.record import FORMAT, KIND, RunRecord, parse_record

BUSY_S = 5.0
"""How long a process waits for others."""
BUSY_AGAIN_S = 0.5
"""The same once it has waited in vain."""
BETWEEN_TEXTS = "\n---\n"
_WORDS = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(prompt, text, content='runs', content_rowid='id')
"""
_COLUMNS = (
    *("started", "command", "session", "version", "model", "revision", "sha256", "directory", "prompt"),
    *("prompt_ids", "seed", "options", "engine", "text", "choices", "usage", "timings"),
)


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A run as the log has it. ``directory`` is the model's where it was named by a path."""

    id: int
    record: RunRecord
    directory: str | None = None

    def document(self) -> dict[str, Any]:
        """The record with its number in the log."""
        return {"id": self.id, **self.record.document()}


class RunLog:
    """The open log. Everything raises `Gpt2cliError` when it cannot be read or written, and
    `ModelFileError` when it is damaged or of a newer version.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, busy_s: float) -> None:
        self._connection, self._path, self._busy_s = connection, path, busy_s
        self._fts5: bool | None = None
        self.unreadable = 0
        """Runs that were left out of the last list, since this version cannot read them."""

    @classmethod
    def open(cls, *, busy_s: float = BUSY_S) -> RunLog:
        """The log, made where there is none."""
        path = paths.log_file()
        with saying(path):
            for _ in range(3):
                if not path.exists():
                    create(path)
                with contextlib.suppress(FileNotFoundError):
                    return cls(connect(path, busy_s), path, busy_s)
        raise Gpt2cliError(f"{path}: it cannot be opened")

    @classmethod
    def open_existing(cls) -> RunLog | None:
        """The log; None where there is none."""
        return cls.open() if paths.log_file().exists() else None

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, record: RunRecord, directory: str | None = None) -> int:
        """Keep a run; its number."""
        names = ", ".join(_COLUMNS)
        marks = ", ".join("?" * len(_COLUMNS))
        with self._writing() as database:
            cursor = database.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", _row(record, directory))
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def set_hash(self, ids: Sequence[int], sha256: str) -> None:
        """The model of the runs ``ids`` is now known."""
        with self._writing() as database:
            database.executemany("UPDATE runs SET sha256 = ? WHERE id = ?", [(sha256, run) for run in ids])

    def get(self, run_id: int) -> LoggedRun:
        """The run of that number. Raises `UsageError` where there is none."""
        with saying(self._path):
            return _logged(self._row(run_id), self._path)

    def last(self, *commands: str) -> LoggedRun | None:
        """The newest run of one of ``commands``."""
        marks = ", ".join("?" * len(commands))
        found = self._runs(f"WHERE command IN ({marks}) ORDER BY id DESC LIMIT 1", commands)
        return found[0] if found else None

    def newest(self, count: int, search: str | None = None) -> list[LoggedRun]:
        """The newest runs, those first; with ``search`` only those that have all of its words, or words
        that begin so. Where no word begins so, those that have them anywhere.
        """
        words = (search or "").split()
        if search is None or not words:
            return self._runs("ORDER BY id DESC LIMIT ?", (count,))
        found = None
        with saying(self._path):
            if self._has_index() and all(any(map(str.isalnum, word)) for word in words):
                self._index()
                quoted = " ".join('"{}"*'.format(word.replace('"', '""')) for word in words)
                where = "WHERE id IN (SELECT rowid FROM words WHERE words MATCH ?) ORDER BY id DESC LIMIT ?"
                found = self._runs(where, (quoted, count))
        if found:
            return found
        like = " AND ".join(["(prompt LIKE ? ESCAPE '\\' OR text LIKE ? ESCAPE '\\')"] * len(words))
        patterns = [f"%{_escaped(word)}%" for word in words for _ in range(2)]
        return self._runs(f"WHERE {like} ORDER BY id DESC LIMIT ?", (*patterns, count))

    def count(self) -> int:
        """How many runs there are."""
        with saying(self._path):
            return int(self._connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    def remove(self, ids: Sequence[int]) -> None:
        """Take runs out of the log, and off the disk. Raises `UsageError` where there is no such run."""
        with self._writing() as database:
            for run_id in ids:
                self._row(run_id)
            indexed = self._indexed() if self._has_index() else 0
            for run_id in ids:
                if run_id <= indexed:
                    database.execute(
                        "INSERT INTO words (words, rowid, prompt, text) "
                        "SELECT 'delete', id, prompt, text FROM runs WHERE id = ?",
                        (run_id,),
                    )
                database.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            if indexed:
                # Merging is what takes the words of a deleted text out of the index.
                database.execute("INSERT INTO words (words) VALUES ('optimize')")
        self._checkpoint()

    def remove_all(self) -> int:
        """Take all runs out of the log, and off the disk; how many there were."""
        with self._writing() as database:
            count = self.count()
            if self._has_index() and self._indexed():
                database.execute("INSERT INTO words (words) VALUES ('delete-all')")
            database.execute("DELETE FROM runs")
            database.execute("DELETE FROM hashes")
            database.execute("DELETE FROM state")
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("VACUUM")
        self._checkpoint()
        return count

    def known_hash(self, path: Path) -> str | None:
        """The SHA-256 of a file that was hashed before and has not changed since. Raises `OSError`."""
        with saying(self._path):
            found = self._connection.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                _place(path),
            ).fetchone()
        return None if found is None else str(found[0])

    def keep_hash(self, path: Path, sha256: str) -> None:
        """Remember the SHA-256 of a file as it is now. Raises `OSError`."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (*_place(path), sha256))

    def _runs(self, where: str, values: Sequence[Any]) -> list[LoggedRun]:
        """The runs that a condition selects; what cannot be read is counted and left out."""
        with saying(self._path):
            rows = self._rows(where, values)
        found = []
        for row in rows:
            with contextlib.suppress(ModelFileError):
                found.append(_logged(row, self._path))
        self.unreadable = len(rows) - len(found)
        return found

    def _row(self, run_id: int) -> Any:
        """The row of a run. Raises `UsageError` where there is none."""
        # SQLite counts with 64 bits.
        rows = self._rows("WHERE id = ?", (run_id,)) if 0 < run_id < 2**63 else []
        if not rows:
            raise UsageError(f"there is no run {shown(run_id)} in the log", hint="gpt2cli logs lists them")
        return rows[0]

    def _rows(self, where: str, values: Sequence[Any]) -> list[Any]:
        columns = ", ".join(_COLUMNS)
        return self._connection.execute(f"SELECT id, {columns} FROM runs {where}", values).fetchall()

    def _has_index(self) -> bool:
        """Whether this SQLite can search for words. One without FTS5 reads and writes the rest."""
        if self._fts5 is None:
            found = self._connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'")
            self._fts5 = found.fetchone() is not None
        return self._fts5

    def _indexed(self) -> int:
        """The last run whose words are in the index; 0 where there is none."""
        found = self._connection.execute("SELECT value FROM state WHERE name = 'indexed'").fetchone()
        return 0 if found is None else int(found[0])

    def _index(self) -> None:
        """Take the words of new runs into the index."""
        newest = self._connection.execute("SELECT max(id) FROM runs").fetchone()[0] or 0
        if newest <= self._indexed():
            return
        with self._writing() as database:
            database.execute(_WORDS)
            database.execute(
                "INSERT INTO words (rowid, prompt, text) SELECT id, prompt, text FROM runs WHERE id > ?",
                (self._indexed(),),
            )
            database.execute("INSERT OR REPLACE INTO state SELECT 'indexed', max(id) FROM runs")

    def _checkpoint(self) -> None:
        """Take what was deleted out of the journal, too; should another process read, the next one does."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _begin(self) -> None:
        """Begin to write, when it is this process's turn.

        SQLite would look again after 100 ms at last, while others take turn after turn; so nobody waits long.
        """
        end = time.monotonic() + self._busy_s
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                        raise
                time.sleep(random.uniform(0.001, 0.01))
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {int(self._busy_s * 1000)}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: all of it, or nothing."""
        with saying(self._path):
            self._begin()
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def _row(record: RunRecord, directory: str | None) -> tuple[Any, ...]:
    document = record.document()
    choices = [{**choice, "text": len(choice["text"])} for choice in document["choices"]]
    ids = document["prompt_ids"]
    return (
        record.started,
        record.command,
        record.session,
        record.version,
        record.model.name,
        record.model.revision,
        record.model.sha256,
        None if directory is None else _path_value(directory),
        record.prompt,
        None if ids is None else _json(ids),
        record.options.seed,
        _json(document["options"]),
        _json(document["engine"]),
        BETWEEN_TEXTS.join(text.text for text in record.texts),
        # A text stands in its column; here is its length.
        _json(choices),
        _json(document["usage"]),
        _json(document["timings"]),
    )


def _logged(row: Sequence[Any], path: Path) -> LoggedRun:
    """A run from its row. Raises `ModelFileError` for one that is damaged."""
    run_id, *values = row
    column = dict(zip(_COLUMNS, values, strict=True))
    try:
        choices, at = json.loads(column["choices"]), 0
        for choice in choices:
            length = choice["text"]
            choice["text"] = column["text"][at : at + length]
            at += length + len(BETWEEN_TEXTS)
        ids = column["prompt_ids"]
        raw = {
            "record": KIND,
            "format": FORMAT,
            **{name: column[name] for name in ("version", "command", "session", "started", "prompt")},
            "model": {"name": column["model"], "revision": column["revision"], "sha256": column["sha256"]},
            "prompt_ids": None if ids is None else json.loads(ids),
            "choices": choices,
            **{name: json.loads(column[name]) for name in ("options", "engine", "usage", "timings")},
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelFileError(f"{path}: run {run_id} is damaged", hint=f"gpt2cli logs rm {run_id}") from None
    directory = column["directory"]
    found = os.fsdecode(directory) if directory is not None else None
    return LoggedRun(int(run_id), parse_record(raw, f"run {run_id}"), found)


def _path_value(path: str) -> str | bytes:
    """A path as SQLite takes it: as bytes where it is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _place(path: Path) -> tuple[str | bytes, int, int, int]:
    status = path.stat()
    # An inode may be larger than what SQLite counts with.
    return (
        _path_value(os.path.realpath(path)),
        status.st_size,
        status.st_mtime_ns,
        status.st_ino & (2**63 - 1),
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
