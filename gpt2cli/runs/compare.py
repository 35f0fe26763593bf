"""Whether a run that was done again gave the same texts, and what is different about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gpt2cli.runs.record import INTERRUPTED, RunRecord, RunText


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part.

    ``text`` is the number of the text, from 0; ``token`` the place of the first other token in what was
    generated, and ``character`` that of the first other character, each None where they are all the same.
    """

    text: int
    token: int | None
    character: int | None
    recorded: RunText
    found: RunText


def first_difference(recorded: Sequence[RunText], found: Sequence[RunText]) -> Difference | None:
    """Where ``found`` is not what was ``recorded``, token by token and character by character.

    Of a text that was interrupted what had come has to come again.
    """
    for number, (then, now) in enumerate(zip(recorded, found, strict=True)):
        token = None
        if then.token_ids is not None and now.token_ids is not None:
            token = _place(then.token_ids, now.token_ids)
        character = _place(then.text, now.text)
        if then.finish_reason == INTERRUPTED and character == len(then.text):
            # A character whose last bytes were still to come.
            character = None
        if token is not None or character is not None or then.finish_reason != now.finish_reason:
            return Difference(number, token, character, then, now)
    return None


def _place(then: Sequence[object], now: Sequence[object]) -> int | None:
    """The first place at which two sequences differ; None where they are equal."""
    if then == now:
        return None
    pairs = zip_longest(then, now, fillvalue=None)
    return next(place for place, (one, other) in enumerate(pairs) if one != other)


@dataclass(frozen=True, slots=True)
class Change:
    """What was one way when the run was recorded, and is another now."""

    what: str
    then: str
    now: str


def changes(recorded: RunRecord, now: RunRecord) -> list[Change]:
    """What is different about the two runs beside their texts."""
    return [Change(*change) for change in _changes(recorded, now) if change[1] != change[2]]


def _changes(recorded: RunRecord, now: RunRecord) -> Iterator[tuple[str, str, str]]:
    yield "model", recorded.model.name, now.model.name
    if recorded.model.sha256 and now.model.sha256:
        yield "model hash", recorded.model.sha256[:12], now.model.sha256[:12]
    yield "gpt2cli", recorded.version, now.version
    one, other = recorded.engine, now.engine
    yield "device", one.device, other.device
    yield "machine", one.machine, other.machine
    yield "precision", one.precision or "", other.precision or ""
    yield "kernels", "; ".join(one.kernels), "; ".join(other.kernels)
    yield "threads", str(one.threads), str(other.threads)
    for name in sorted(one.libraries.keys() & other.libraries.keys()):
        yield name, one.libraries[name], other.libraries[name]
