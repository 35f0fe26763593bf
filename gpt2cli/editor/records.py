"""Spans as JSON, for the recovery file and the sidecar; what is read is checked, a file may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpt2cli.editor.spans import BEFORE, USER, Draw, Origin, Run, Runs

MODEL = "model"


def draw_record(draw: Draw) -> dict[str, Any]:
    """A draw as JSON."""
    return {
        "number": draw.number,
        "model": draw.model,
        "revision": draw.revision,
        "seed": draw.seed,
        "options": dict(draw.options),
    }


def draw_of(record: Any) -> Draw:
    """`draw_record` turned round. Raises ValueError."""
    if not isinstance(record, dict):
        raise ValueError("a draw is an object")
    number, model, seed = record.get("number"), record.get("model"), record.get("seed")
    revision, options = record.get("revision"), record.get("options", {})
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (number, seed))
    if not whole or not isinstance(model, str) or not isinstance(revision, str | None):
        raise ValueError("a draw has a number, a model and a seed")
    if not isinstance(options, dict):
        raise ValueError("the options of a draw are an object")
    assert isinstance(number, int) and isinstance(seed, int)
    return Draw(number, model, revision, seed, options)


def run_records(runs: Iterable[Run]) -> list[list[Any]]:
    """Runs as pairs of a length and an origin: ``user``, ``before``, or the number of a draw."""
    return [[run.length, origin_record(run.origin)] for run in runs]


def origin_record(origin: Origin) -> str | int:
    """``user``, ``before``, or the number of a draw."""
    return origin.number if isinstance(origin, Draw) else origin


def runs_of(records: Any, draws: Mapping[int, Draw], length: int) -> Runs:
    """`run_records` turned round, for a text of ``length`` characters. Raises ValueError."""
    if not isinstance(records, list):
        raise ValueError("spans are a list")
    runs: list[Run] = []
    for record in records:
        if (
            not isinstance(record, list)
            or len(record) != 2
            or not isinstance(record[0], int)
            or record[0] < 1
        ):
            raise ValueError("a span has a length and an origin")
        runs.append(Run(record[0], origin_of(record[1], draws)))
    if sum(run.length for run in runs) != length:
        raise ValueError("the spans are not those of the text")
    return tuple(runs)


def origin_of(record: Any, draws: Mapping[int, Draw]) -> Origin:
    """`origin_record` turned round. Raises ValueError."""
    if record in (USER, BEFORE):
        return str(record)
    if isinstance(record, int) and record in draws:
        return draws[record]
    raise ValueError("an origin that is not known")
