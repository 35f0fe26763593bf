"""Texts gathered in groups, and run through a model in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from gpt2cli.core.torch_model import TorchModel

T = TypeVar("T")
R = TypeVar("R")

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""Tokens that go through the model at once; one text always does."""
GROUP_BATCHES = 4
"""Texts are gathered, and sorted by length, in groups of so many batches."""


def batch_size(model: TorchModel, given: int | None = None) -> int:
    """Tokens of a batch: as ``given``, else what suits the model's device."""
    return given or BATCH_TOKENS.get(model.device.type, 2048)


def gathered(
    items: Iterable[T],
    length: Callable[[T], int],
    tokens: int,
    may_end: Callable[[T], bool] = lambda item: True,
) -> Iterator[list[T]]:
    """Groups of `GROUP_BATCHES` batches of ``tokens`` each; only an item that ``may_end`` one ends it."""
    group: list[T] = []
    held = 0
    for item in items:
        group.append(item)
        held += length(item)
        if held >= GROUP_BATCHES * tokens and may_end(item):
            yield group
            group, held = [], 0
    if group:
        yield group


def run_by_length(
    items: Sequence[T], length: Callable[[T], int], tokens: int, run: Callable[[list[T]], Sequence[R]]
) -> list[R]:
    """What ``run`` makes of each item, in the items' order; it is called with batches of like length."""
    found: dict[int, R] = {}
    for batch in by_length([length(item) for item in items], tokens):
        found.update(zip(batch, run([items[n] for n in batch]), strict=True))
    return [found[n] for n in range(len(items))]


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Batches of texts, as indices into ``lengths``, of at most ``tokens`` tokens; at least one text each.

    The longest come first, and texts of one length stand together.
    """
    batch: list[int] = []
    held = 0
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if batch and held + lengths[n] > tokens:
            yield batch
            batch, held = [], 0
        batch.append(n)
        held += lengths[n]
    if batch:
        yield batch
