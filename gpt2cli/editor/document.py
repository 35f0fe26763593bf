"""The text that is edited: its spans, and undo and redo; pure data, without a terminal and without a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt2cli.editor.spans import USER, Draw, Origin, Runs, joined, length_of, part_of, replaced, run_of

CUT_TEXTS = 16
"""So many removed texts with words of the model are remembered, should they be put back elsewhere."""


@dataclass(frozen=True, slots=True)
class Change:
    """At ``at`` the text ``removed`` gave way to ``inserted``; each with its runs."""

    at: int
    removed: str
    inserted: str
    removed_runs: Runs
    inserted_runs: Runs

    @property
    def inverse(self) -> Change:
        """What takes it back."""
        return Change(self.at, self.inserted, self.removed, self.inserted_runs, self.removed_runs)

    @property
    def end(self) -> int:
        """Where the inserted text ends."""
        return self.at + len(self.inserted)


class Document:
    """A text of which each character has an origin, and the changes that can be undone and redone.

    Single characters typed or deleted one after the other are one step of undo, a word at most. Everything
    else is a step of its own, and so is what comes after `pause`. ``changed`` is called with each change,
    those by undo and redo included.
    """

    def __init__(self, text: str = "", runs: Runs | None = None) -> None:
        self.text = text
        self.runs = run_of(text, USER) if runs is None else runs
        assert length_of(self.runs) == len(text)
        self.changed: Callable[[Change], None] = lambda change: None
        self._saved_text = text
        self._saved_number = self._number = max((d.number for d in self._draws()), default=0)
        self._undone: list[Change] = []
        self._done: list[Change] = []
        self._open = False
        self._cut: dict[str, Runs] = {}

    @property
    def modified(self) -> bool:
        """Whether the text differs from what was saved last."""
        return self.text != self._saved_text

    @property
    def can_undo(self) -> bool:
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def next_number(self) -> int:
        """A number for a new `Draw`, greater than all before it."""
        self._number += 1
        return self._number

    def is_new(self, origin: Origin) -> bool:
        """Whether it is the model's, taken since the text was saved."""
        return isinstance(origin, Draw) and origin.number > self._saved_number

    def saved(self) -> None:
        """The text as it is now stands in the file."""
        self._saved_text, self._saved_number = self.text, self._number
        self.pause()

    def pause(self) -> None:
        """What is typed next is a step of undo of its own."""
        self._open = False

    def pause_unless_at(self, at: int) -> None:
        """`pause` where the cursor, now at ``at``, has left the place of the last change."""
        if not self._done or self._done[-1].end != at:
            self.pause()

    def replace(self, at: int, removed: int, inserted: str, origin: Origin = USER) -> None:
        """Put ``inserted`` in the place of ``removed`` characters from ``at`` on.

        What the user cut and puts back keeps its origin. Raises ValueError for a place outside the text.
        """
        runs = run_of(inserted, origin)
        if origin == USER:
            runs = self._cut.get(inserted, runs)
        change = self.change(at, removed, inserted, runs)
        if change.removed != inserted or origin != USER:
            self.apply(change)

    def change(self, at: int, removed: int, inserted: str, runs: Runs) -> Change:
        """The change that puts ``inserted``, which has ``runs``, there. Raises ValueError as `replace`."""
        if at < 0 or removed < 0 or at + removed > len(self.text):
            raise ValueError(f"no characters {at} to {at + removed} in a text of {len(self.text)}")
        end = at + removed
        return Change(at, self.text[at:end], inserted, part_of(self.runs, at, end), runs)

    def apply(self, change: Change) -> None:
        """Make a change as a new step of undo, or as part of the last one."""
        self._remember_cut(change)
        last = self._done[-1] if self._done and self._open else None
        merged = _merged(last, change) if last is not None else None
        self._make(change)
        self._undone.clear()
        if merged is None:
            self._done.append(change)
        else:
            self._done[-1] = merged
        self._open = max(len(change.inserted), len(change.removed)) == 1

    def undo(self) -> int | None:
        """Take the last step back; where the cursor is then, None if there is no step."""
        return self._step(self._done, self._undone)

    def redo(self) -> int | None:
        """Make the step again that was undone last; where the cursor is then, None if there is none."""
        return self._step(self._undone, self._done)

    def _step(self, source: list[Change], target: list[Change]) -> int | None:
        self.pause()
        if not source:
            return None
        inverse = source.pop().inverse
        self._make(inverse)
        target.append(inverse)
        return inverse.end

    def _make(self, change: Change) -> None:
        after = change.at + len(change.removed)
        assert self.text[change.at : after] == change.removed
        self.text = self.text[: change.at] + change.inserted + self.text[after:]
        self.runs = replaced(self.runs, change.at, len(change.removed), change.inserted_runs)
        for run in change.inserted_runs:
            if isinstance(run.origin, Draw):
                self._number = max(self._number, run.origin.number)
        self.changed(change)

    def _draws(self) -> list[Draw]:
        return [run.origin for run in self.runs if isinstance(run.origin, Draw)]

    def _remember_cut(self, change: Change) -> None:
        if len(change.removed) < 2 or not any(isinstance(run.origin, Draw) for run in change.removed_runs):
            return
        self._cut.pop(change.removed, None)
        self._cut[change.removed] = change.removed_runs
        while len(self._cut) > CUT_TEXTS:
            self._cut.pop(next(iter(self._cut)))


def _merged(last: Change, new: Change) -> Change | None:
    """Two changes as one where the second goes on with the first; None where it does not."""
    if len(new.inserted) == 1 and not new.removed and not last.removed and new.at == last.end:
        if new.inserted == "\n" or (last.inserted[-1:].isspace() and not new.inserted.isspace()):
            return None
        runs = joined(last.inserted_runs, new.inserted_runs)
        return Change(last.at, "", last.inserted + new.inserted, (), runs)
    if len(new.removed) == 1 and not new.inserted and not last.inserted:
        if new.at + 1 == last.at:
            runs = joined(new.removed_runs, last.removed_runs)
            return Change(new.at, new.removed + last.removed, "", runs, ())
        if new.at == last.at:
            runs = joined(last.removed_runs, new.removed_runs)
            return Change(new.at, last.removed + new.removed, "", runs, ())
    return None


def difference(old: str, new: str, cursor: int) -> tuple[int, int, str]:
    """Where ``new`` differs from ``old``: at which place how many characters gave way to which text.

    ``cursor`` is where the cursor stands in ``new``: after what was typed, which tells an ``a`` typed
    before an ``a`` from one typed behind it.
    """
    tail = len(new) - cursor
    if not old.endswith(new[cursor:]):
        tail = 0
    head = _common_start(old, new, min(len(old), len(new)) - tail)
    if not tail:
        rest = min(len(old), len(new)) - head
        tail = _common_start(old[::-1], new[::-1], rest)
    return head, len(old) - head - tail, new[head : len(new) - tail]


def _common_start(one: str, other: str, high: int) -> int:
    """How many of the first ``high`` characters are the same in both; by halves, without a loop over them."""
    if one.startswith(other[:high]):
        return high
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
