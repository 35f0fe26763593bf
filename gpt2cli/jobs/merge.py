"""The outputs of all shards of a job, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import replacing
from gpt2cli.jobs.manifest import Manifest, read_manifest, write_manifest
from gpt2cli.jobs.shards import Shard


@dataclass(frozen=True, slots=True)
class Part:
    """The output of one shard."""

    path: Path
    manifest: Manifest
    shard: Shard


def read_parts(paths: Sequence[Path], target: Path) -> list[Part]:
    """The shards in their order.

    Raises `UsageError` unless they are the parts of one job, all complete, and none of them is ``target``.
    """
    parts = sorted((_part(path) for path in paths), key=lambda part: part.shard.number)
    _check_parts(parts)
    if any(part.path.resolve() == target.resolve() for part in parts):
        raise UsageError(f"{target} is one of the parts", hint="give another file with -o")
    return parts


def write_merged(parts: Sequence[Part], target: Path, lines: Iterable[bytes]) -> None:
    """Put ``lines`` into ``target``, whole or not at all, and a manifest beside it. Raises `Gpt2cliError`."""
    try:
        with replacing(target) as file:
            file.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise Gpt2cliError(f"cannot write {target}: {error.strerror or error}") from None
    rows = sum(part.manifest.rows or 0 for part in parts)
    write_manifest(target, replace(parts[0].manifest, shard=None, rows=rows, state={}))


def lines_of(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, without their ends. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _part(path: Path) -> Part:
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{path}: there is no manifest beside it", hint="give what --shard I/N -o FILE wrote"
        )
    shard = Shard.parse(manifest.shard)
    if shard is None:
        raise UsageError(f"{path}: it is no part of a job, but a whole one")
    if not manifest.complete:
        raise UsageError(
            f"{path}: some of its {manifest.rows or 0:,} rows are missing",
            hint=f"run shard {shard} again: it goes on where it stopped",
        )
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
