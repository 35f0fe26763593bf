"""Keys and values of prompts that were read, for prompts that begin alike.

How long an answer takes tells whether a prompt's beginning was there already: so what one API key has read is
never used for another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from gpt2cli.core.backend import Backend

LEAST = 16
"""Fewer tokens are read again sooner than copied."""


@dataclass(frozen=True, slots=True)
class Held:
    """A slot, and the tokens that it holds from its first position on."""

    owner: Hashable
    slot: int
    ids: Sequence[int]


class Prefixes:
    """Slots of texts that have ended, the latest last; ``most`` at a time. With none nothing is copied."""

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend, self._most = backend, most
        self._kept: list[Held] = []

    @property
    def tokens(self) -> int:
        """How many tokens are kept in all."""
        return sum(len(held.ids) for held in self._kept)

    def begin(self, owner: Hashable, prompt: Sequence[int], running: Iterable[Held]) -> tuple[int, int]:
        """A slot for ``prompt``, and how many of its tokens it holds already.

        They are copied from what the same owner has kept, or has running. The last token is always new, for
        the logits after it. A kept slot that holds nothing else is taken over.
        """
        if not self._most:
            return self._backend.new_slot(), 0
        best, common = None, LEAST - 1
        for held in (*reversed(self._kept), *running):
            if held.owner == owner and (shared := common_length(held.ids, prompt[:-1])) > common:
                best, common = held, shared
        if best is None:
            return self._backend.new_slot(), 0
        if best in self._kept:
            self._kept.remove(best)
            if len(best.ids) == common:
                return best.slot, common
            self._kept.append(best)
        slot = self._backend.new_slot()
        try:
            self._backend.copy_slot(best.slot, slot, common)
        except BaseException:
            self._backend.free_slot(slot)
            raise
        return slot, common

    def keep(self, held: Held) -> None:
        """A text has ended: its slot is kept, and another one given up where there are too many."""
        if len(held.ids) < LEAST or not self._most:
            self._backend.free_slot(held.slot)
            return
        # What begins a longer text that is kept is of no more use.
        for other in [o for o in self._kept if o.owner == held.owner]:
            if common_length(other.ids, held.ids) == len(other.ids):
                self._give_up(other)
        self._kept.append(held)
        if len(self._kept) > self._most:
            self.give_up_one()

    def give_up_one(self) -> bool:
        """Free the slot that was not used for the longest time; whether there was one."""
        if not self._kept:
            return False
        self._give_up(self._kept[0])
        return True

    def _give_up(self, held: Held) -> None:
        self._kept.remove(held)
        self._backend.free_slot(held.slot)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:LEAST] != b[:LEAST]:
        # Nearly always so: what they share is too little to count.
        high = min(high, LEAST - 1)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
