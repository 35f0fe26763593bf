"""The outputs of all shards of a job, put together."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import as_created
from gpt2cli.jobs.manifest import Manifest, read_manifest, write_manifest
from gpt2cli.jobs.shards import Shard

Known = Callable[[bytes], bytes | None]
"""What tells a line's row from all others; None for a line that is no row."""


@dataclass(frozen=True, slots=True)
class Part:
    """The output of one shard."""

    path: Path
    manifest: Manifest
    shard: Shard


def merge(paths: Sequence[Path], target: Path, known: Known) -> int:
    """Write the rows of all shards into ``target``, whole or not at all; how many there are.

    Raises `UsageError` where they are not the parts of one job, all of them and complete; `Gpt2cliError`.
    """
    parts = sorted((_part(path) for path in paths), key=lambda part: part.shard.number)
    _check_parts(parts)
    if any(part.path.resolve() == target.resolve() for part in parts):
        raise UsageError(f"{target} is one of the parts", hint="give another file with -o")
    rows = 0
    try:
        handle, temporary = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.name[:80]}-")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in parts:
                    rows += _copy(part, known, file.write)
                file.flush()
                os.fsync(handle)
            as_created(Path(temporary))
            os.replace(temporary, target.resolve())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise Gpt2cliError(f"cannot write {target}: {error.strerror or error}") from None
    write_manifest(target, replace(parts[0].manifest, shard=None, rows=rows))
    return rows


def _part(path: Path) -> Part:
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{path}: there is no manifest beside it", hint="give what --shard I/N -o FILE wrote"
        )
    shard = Shard.parse(manifest.shard)
    if shard is None:
        raise UsageError(f"{path}: it is no part of a job, but a whole one")
    return Part(path, manifest, shard)


def _check_parts(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        replace(part.manifest, shard=None).check_against(replace(first.manifest, shard=None), first.path)
        if part.manifest.source != first.manifest.source:
            raise UsageError(f"{first.path} and {part.path} are parts of different inputs")
        if part.shard.of != first.shard.of:
            raise UsageError(f"{first.path} is shard {first.shard}, and {part.path} is {part.shard}")
    numbers = [part.shard.number for part in parts]
    missing = sorted(set(range(1, first.shard.of + 1)) - set(numbers))
    if missing:
        raise UsageError(f"shard {missing[0]}/{first.shard.of} is missing")
    if len(numbers) > first.shard.of:
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UsageError(f"shard {twice}/{first.shard.of} is there twice")


def _copy(part: Part, known: Known, write: Callable[[bytes], object]) -> int:
    """Copy a part's rows, each once; how many. Raises `UsageError` where some are missing."""
    seen: set[bytes] = set()
    for line in _lines(part.path):
        key = known(line)
        if key is not None and key not in seen:
            seen.add(key)
            write(line + b"\n")
    wanted = part.manifest.rows
    if not part.manifest.complete or (wanted is not None and len(seen) < wanted):
        raise UsageError(
            f"{part.path}: {len(seen):,} rows are there, and some of {wanted or 0:,} are missing",
            hint=f"run shard {part.shard} again: it goes on where it stopped",
        )
    return len(seen)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
