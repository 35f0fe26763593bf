"""Models in and out: which files a model is made of, and a copy of them elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpt2cli.adapter import is_adapter
from gpt2cli.checkpoint import weight_files
from gpt2cli.errors import Gpt2cliError, ModelFileError, UsageError
from gpt2cli.files import as_created
from gpt2cli.hub.contents import adapter_files, check_contents
from gpt2cli.hub.store import StoredModel, check_space, copy_file, repair_command
from gpt2cli.model_files import CONFIG_FILES, TEXT_FILES, TOKENIZER_FILES


def side_files(directory: Path) -> list[Path]:
    """The files of a model but its weights: config, tokenizer, card, licence, as far as they are there."""
    names = (*CONFIG_FILES, *TOKENIZER_FILES, *TEXT_FILES)
    return [directory / name for name in names if (directory / name).is_file()]


def model_files(directory: Path) -> list[Path]:
    """The files of a model or adapter; what else lies beside them is none. Raises `ModelFileError`."""
    if is_adapter(directory):
        return adapter_files(directory)
    return [*side_files(directory), *weight_files(directory)]


def check_empty(target: Path) -> None:
    """Raise `UsageError` unless a directory can be made at ``target``, or there is an empty one."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target}: it exists, and is no directory")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{target}: the directory is not empty", hint="give one that is new or empty")
    if target.is_dir() and target.samefile("."):
        raise UsageError(f"{target}: it is the working directory", hint="give one that is new or empty")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no directory {target.absolute().parent}")


@contextlib.contextmanager
def new_directory(target: Path, size: int) -> Iterator[Path]:
    """A directory to fill, which appears at ``target`` when the block ends well, all of it or nothing.

    ``size`` is what it will hold, in bytes. Raises `UsageError` when ``target`` is in use, `Gpt2cliError`
    when the disk is full or cannot be written.
    """
    try:
        check_empty(target)
        parent = target.absolute().parent
        check_space(parent, size)
        incoming = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name[:80]}-"))
        try:
            yield incoming
            as_created(incoming)
            if target.is_dir():
                target.rmdir()
            os.replace(incoming, target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise Gpt2cliError(f"{error.filename or target}: {error.strerror or error}") from None


def export_model(model: StoredModel, target: Path) -> int:
    """Copy the files of ``model`` into the new directory ``target``, all of them or none; their bytes.

    A stored file is held against its manifest on the way. Raises `UsageError` when ``target`` is in use,
    `ModelFileError` when the model is damaged or a pickle, `Gpt2cliError` when the copy fails.
    """
    try:
        check_empty(target)
        check_contents(model.directory)
        records = {record.path: record for record in model.manifest.files} if model.manifest else {}
        paths = [model.directory / name for name in records] or model_files(model.directory)
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise Gpt2cliError(f"{error.filename or target}: {error.strerror or error}") from None
    with new_directory(target, size) as incoming:
        for path in paths:
            copied = copy_file(path, incoming / path.name)
            record = records.get(path.name)
            if record and (copied.size, copied.sha256) != (record.size, record.sha256.lower()):
                raise ModelFileError(
                    f"{path}: it is not the file that came in",
                    hint=f"to repair it: {repair_command(model)}",
                )
    return size
