"""``gpt2cli batch --merge``: the outputs of all shards of a job, put together."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2cli.batch.output import read_written
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.jobs.merge import Part, lines_of, read_parts, write_merged


def merge(paths: Sequence[Path], target: Path) -> int:
    """Write the rows of all shards of `batch`, `score` or `features` into ``target``; how many there are.

    Raises `UsageError` unless they are the parts of one job, all of them and complete; `Gpt2cliError`.
    """
    parts = read_parts(paths, target)
    job = parts[0].manifest.job
    lines = _unordered(parts) if job == "batch" else _ordered(parts)
    write_merged(parts, target, lines)
    return sum(part.manifest.rows or 0 for part in parts)


def _unordered(parts: Sequence[Part]) -> Iterator[bytes]:
    """Rows of `batch`, which are written as they end, each once."""
    for part in parts:
        seen: set[bytes] = set()
        for line in lines_of(part.path):
            written = read_written(line)
            if written is not None and written.key not in seen:
                seen.add(written.key)
                yield line
        if len(seen) < (part.manifest.rows or 0):
            raise UsageError(
                f"{part.path}: only {len(seen):,} of its {part.manifest.rows:,} rows are there",
                hint=f"run shard {part.shard} again: it goes on where it stopped",
            )


def _ordered(parts: Sequence[Part]) -> Iterator[bytes]:
    """Rows of `score` and `features`, which have the order of the input; what is summed up comes last."""
    summary: dict[str, Any] = {}

    def indexed(part: Part) -> Iterator[tuple[int, bytes]]:
        for line in lines_of(part.path):
            try:
                document = json.loads(line)
                if document.get("event") == "summary":
                    summary.update(document)
                else:
                    yield int(document["index"]), line
            except (ValueError, KeyError, AttributeError, TypeError):
                raise ModelFileError(f"{part.path}: a line is no row of {part.manifest.job}") from None

    for _, line in heapq.merge(*map(indexed, parts), key=lambda row: row[0]):
        yield line
    if summary:
        yield json.dumps(_summed(parts, summary), ensure_ascii=False, allow_nan=False).encode()


def _summed(parts: Sequence[Part], summary: dict[str, Any]) -> dict[str, Any]:
    """The last event of `score` over all parts."""
    from gpt2cli.analysis.totals import Totals

    total = Totals()
    for part in parts:
        total.add(Totals(**part.manifest.state["total"]))
    texts = sum(part.manifest.rows or 0 for part in parts)
    kept = {name: value for name, value in summary.items() if name not in ("resumed", "timings")}
    return {**kept, "total": {"texts": texts, **total.document()}}
