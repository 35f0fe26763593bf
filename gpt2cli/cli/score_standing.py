"""What a run of `score` has in common with the one that it goes on from, and with the other shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpt2cli import paths
from gpt2cli.analysis.totals import Totals
from gpt2cli.analysis.windows import WindowOptions
from gpt2cli.cli.loading import FoundModel, model_hash
from gpt2cli.cli.score_options import Job
from gpt2cli.core.engine import Engine
from gpt2cli.jobs.manifest import Manifest, write_manifest
from gpt2cli.jobs.standing import Standing, fingerprint

_NO_MATTER = ("resume", "shard", "output", "plot", "batch_tokens")


def standing_of(
    job: Job, found: FoundModel, engine: Engine, windows: WindowOptions, beside: Path | None
) -> Standing:
    """Where the run stands: kept ``beside`` its rows, and without any in the cache.

    The source is a file.
    """
    manifest = manifest_of(job, found, engine, windows)
    assert job.source.path is not None
    # The run that goes on reads from the middle, and puts out what the other one would have.
    more = {"source": fingerprint(job.source.path), "plot": str(job.options.plot)}
    manifest = replace(manifest, options={**manifest.options, **more, "output": str(job.options.output)})
    if beside is not None:
        return Standing(beside, manifest)
    name = hashlib.sha256(json.dumps(asdict(manifest), sort_keys=True).encode()).hexdigest()[:32]
    return Standing(paths.cache_dir() / "score" / name, manifest)


def manifest_of(job: Job, found: FoundModel, engine: Engine, windows: WindowOptions) -> Manifest:
    """What all rows have in common, on any machine."""
    options, info = job.options, engine.info
    given: dict[str, Any] = {
        name: str(value) for name, value in asdict(options).items() if name not in _NO_MATTER
    }
    return Manifest(
        job="score",
        model=found.resolved.name,
        model_hash=model_hash(found) if options.many else _fingerprints(found),
        options={
            **given,
            "precision": info.precision,
            "device": info.device,
            "windows": [windows.size, windows.stride],
        },
        shard=str(options.shard) if options.shard is not None else None,
    )


def keep_manifest(job: Job, manifest: Manifest, total: Totals, texts: int) -> None:
    """Put it beside the output of a shard that is done, for whoever merges them. Raises `Gpt2cliError`."""
    if job.options.output is None:
        return
    size = None if job.source.size is None else str(job.source.size)
    state = {"total": asdict(total)}
    whole = replace(manifest, source=size, rows=texts, complete=True, state=state)
    write_manifest(job.options.output, whole)


def _fingerprints(found: FoundModel) -> str:
    """What stands for the hash of the model where one text is scored, which is not to wait for it."""
    checkpoint = found.checkpoint
    files = {info.file for info in checkpoint.tensors.values()} | set(checkpoint.pickles)
    files |= {checkpoint.directory / "config.json"}
    files |= set(checkpoint.adapter.files) if checkpoint.adapter is not None else set()
    known = json.dumps(sorted(fingerprint(file) for file in files))
    return hashlib.sha256(known.encode()).hexdigest()
