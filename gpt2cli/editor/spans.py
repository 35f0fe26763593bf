"""Who wrote which part of a text: runs of characters, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

USER, BEFORE = "user", "before"
"""Typed or pasted in the editor; in the file already when it was first opened."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A text that the model drew and the user took, or a part of it.

    ``seed`` and ``options`` are those of its sequence alone; ``number`` tells it from every other one of
    this document, and later ones have greater numbers.
    """

    number: int
    model: str
    revision: str | None
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


Origin = str | Draw


@dataclass(frozen=True, slots=True)
class Run:
    """So many characters in a row of one origin; at least one."""

    length: int
    origin: Origin


Runs = tuple[Run, ...]


def run_of(text: str, origin: Origin) -> Runs:
    """The runs of ``text`` that is all of one origin."""
    return (Run(len(text), origin),) if text else ()


def length_of(runs: Iterable[Run]) -> int:
    """How many characters they are."""
    return sum(run.length for run in runs)


def joined(*parts: Iterable[Run]) -> Runs:
    """One after the other; neighbours of one origin become one run."""
    merged: list[Run] = []
    for part in parts:
        for run in part:
            if merged and merged[-1].origin == run.origin:
                merged[-1] = Run(merged[-1].length + run.length, run.origin)
            else:
                merged.append(run)
    return tuple(merged)


def part_of(runs: Iterable[Run], start: int, end: int) -> Runs:
    """The runs of the characters from ``start`` to ``end``."""
    found: list[Run] = []
    at = 0
    for run in runs:
        low, high = max(start, at), min(end, at + run.length)
        if low < high:
            found.append(Run(high - low, run.origin))
        at += run.length
        if at >= end:
            break
    return tuple(found)


def replaced(runs: Runs, at: int, removed: int, inserted: Runs) -> Runs:
    """``runs`` with ``inserted`` in the place of ``removed`` characters from ``at`` on."""
    total = length_of(runs)
    return joined(part_of(runs, 0, at), inserted, part_of(runs, at + removed, total))


def draws_in(runs: Iterable[Run]) -> list[Draw]:
    """Each draw once, in the order in which they begin."""
    return list({run.origin.number: run.origin for run in runs if isinstance(run.origin, Draw)}.values())
