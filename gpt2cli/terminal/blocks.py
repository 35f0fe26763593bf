"""Several texts that grow at the same time, shown one block after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpt2cli.text.sanitize import Sanitizer


class Blocks:
    """Passes the first unfinished text on as it grows, and holds the others back until it is their turn.

    ``heads[i]`` stands before text *i*, already fit to be shown; a block ends with one newline if its
    text has none. With ``safe`` the texts are sanitised.
    """

    def __init__(self, write: Callable[[str], None], heads: Sequence[str], *, safe: bool) -> None:
        self._write = write
        self._heads = heads
        self._waiting = [""] * len(heads)
        self._ended = [False] * len(heads)
        self._sanitizers = [Sanitizer() if safe else None for _ in heads]
        self._current = 0
        self._begun = False
        self._last = ""

    def push(self, block: int, text: str) -> None:
        """More of text ``block``."""
        cleaner = self._sanitizers[block]
        self._waiting[block] += cleaner.push(text) if cleaner else text
        self._show()

    def end(self, block: int) -> None:
        """Text ``block`` is complete."""
        self._ended[block] = True
        self._show()

    def _show(self) -> None:
        while self._current < len(self._heads):
            if not self._begun:
                self._put(self._heads[self._current])
                self._begun = True
            self._put(self._waiting[self._current])
            self._waiting[self._current] = ""
            if not self._ended[self._current]:
                return
            if not self._last.endswith("\n"):
                self._put("\n")
            self._current, self._begun, self._last = self._current + 1, False, ""

    def _put(self, text: str) -> None:
        if text:
            self._write(text)
            self._last = text
