"""The file of the log: made, opened, and what may be wrong with it.

It is made whole under another name, so that two processes that begin it at once have one. ``user_version`` is
the version of the schema.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.files import move_new

SCHEMA = 1
_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started TEXT NOT NULL,
    command TEXT NOT NULL,
    session TEXT,
    version TEXT NOT NULL,
    model TEXT NOT NULL,
    revision TEXT,
    sha256 TEXT,
    directory TEXT,
    prompt TEXT NOT NULL,
    prompt_ids TEXT,
    seed INTEGER NOT NULL,
    options TEXT NOT NULL,
    engine TEXT NOT NULL,
    text TEXT NOT NULL,
    choices TEXT NOT NULL,
    usage TEXT NOT NULL,
    timings TEXT NOT NULL
);
CREATE TABLE hashes (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT
) WITHOUT ROWID;
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)


def connect(path: Path, busy_s: float) -> sqlite3.Connection:
    """Open a log that is there. Raises `sqlite3.Error`, `FileNotFoundError`, `ModelFileError`."""
    os.stat(path)
    address = f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(path)))}?mode=rw"
    connection = sqlite3.connect(address, uri=True, timeout=busy_s, isolation_level=None)
    try:
        # What a killed process wrote last may be lost with the power, and nothing else.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise ModelFileError(
                f"{path}: written by a newer gpt2cli (version {version}; this one reads {SCHEMA})",
                hint="use the newer gpt2cli for it, or move the file away: then a new log begins",
            )
        if version < 1:
            raise _not_ours(path, "it is no log of gpt2cli")
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path) -> None:
    """Make an empty log, for its owner alone; nothing where another process was first.

    Raises `sqlite3.Error`, `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        finally:
            connection.close()
        with contextlib.suppress(FileExistsError):
            move_new(temporary, path)
    finally:
        for left in (temporary, *(Path(f"{temporary}{end}") for end in ("-wal", "-shm", "-journal"))):
            left.unlink(missing_ok=True)


def _not_ours(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: {what}",
        hint="move the file away, and those beside it that begin with its name: then a new log begins",
    )


@contextlib.contextmanager
def saying(path: Path) -> Iterator[None]:
    """What SQLite and the system raise becomes an error of ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Gpt2cliError(f"{path}: another process has it locked") from None
        if code in _DAMAGED:
            raise _not_ours(path, f"it is damaged ({error})") from None
        raise Gpt2cliError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Gpt2cliError(f"{path}: {error.strerror or error}") from None
