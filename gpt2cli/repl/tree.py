"""The turns of a conversation: a tree that only grows, and the place in it where one stands."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class Turn:
    """What the user said and what the model answered. Turns do not change once they are in the tree.

    ``answer`` is what was shown, ``answer_ids`` what the model generated of it, token by token: fed
    back as they are. ``options`` are the ones of `GenerateOptions` that are not the default, enough to
    draw the answer again; ``draw`` counts the answers to the same words.
    """

    id: int
    parent: int | None
    user: str
    answer: str
    answer_ids: Sequence[int]
    seed: int
    draw: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    depth: int = 0
    """How many turns stand before it on its path."""
    first: int | None = None
    """The first turn that was in its context; its own id when that was alone. None: not known."""
    continues: int | None = None
    """The turn whose answer this one goes on with."""
    logprobs: list[tuple[int, float]] | None = None
    """Each token of the answer with its log-probability; not saved."""

    def __post_init__(self) -> None:
        # A list of Python's own numbers would take nine times the memory.
        self.answer_ids = array("i", self.answer_ids)


class Tree:
    """Turns by id, each under its parent; ``current`` is the one whose answer came last."""

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._children: dict[int | None, list[int]] = {}
        self._taken: dict[int | None, int] = {}
        self._current: int | None = None
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        """All turns in the order in which they were added."""
        return iter(self._turns.values())

    def __contains__(self, turn_id: object) -> bool:
        return turn_id in self._turns

    def __getitem__(self, turn_id: int) -> Turn:
        """Raises KeyError."""
        return self._turns[turn_id]

    @property
    def current(self) -> Turn | None:
        """Where one stands; None before the first turn."""
        return None if self._current is None else self._turns[self._current]

    @property
    def next_id(self) -> int:
        """The id that the next new turn has."""
        return self._last_id + 1

    def add(self, turn: Turn) -> Turn:
        """Put ``turn`` under its parent and stand on it. Raises KeyError without such a parent."""
        turn.depth = 0 if turn.parent is None else self._turns[turn.parent].depth + 1
        if turn.id in self._turns:
            raise ValueError(f"turn {turn.id} is there already")
        self._turns[turn.id] = turn
        self._last_id = max(self._last_id, turn.id)
        self._children.setdefault(turn.parent, []).append(turn.id)
        self._stand(turn.id)
        return turn

    def back(self, turn: Turn | None) -> Iterator[Turn]:
        """``turn`` and those before it, to the root."""
        while turn is not None:
            yield turn
            turn = None if turn.parent is None else self._turns[turn.parent]

    def path(self, turn: Turn | None = None) -> list[Turn]:
        """From the first turn to ``turn``, by default to the current one."""
        return [*self.back(turn or self.current)][::-1]

    def children(self, turn_id: int | None) -> list[Turn]:
        """The turns that follow ``turn_id``; of None, the first turns."""
        return [self._turns[child] for child in self._children.get(turn_id, ())]

    def siblings(self, turn_id: int) -> list[Turn]:
        """The turns with the same parent, itself included. Raises KeyError."""
        return self.children(self._turns[turn_id].parent)

    def next_draw(self, turn: Turn) -> int:
        """The number of the next draw of an answer to the same words at the same place."""
        return 1 + max(other.draw for other in self.siblings(turn.id) if other.user == turn.user)

    def undo(self) -> Turn | None:
        """Step back; the turn that was left, None when there was none."""
        left = self.current
        if left is not None:
            self._current = left.parent
            self._taken[left.parent] = left.id
        return left

    def redo(self) -> Turn | None:
        """Step to the turn that was left last from here; None when there is none."""
        taken = self._taken.get(self._current)
        if taken is None:
            return None
        self._current = taken
        return self._turns[taken]

    def go(self, turn_id: int | None) -> Turn | None:
        """Stand on a turn; None is before the first. Raises KeyError."""
        if turn_id is None:
            self._current = None
            return None
        turn = self._turns[turn_id]
        self._stand(turn_id)
        return turn

    def _stand(self, turn_id: int) -> None:
        self._current = turn_id
        self._taken[self._turns[turn_id].parent] = turn_id
