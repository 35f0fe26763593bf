"""Suggestions at the prompt: an earlier line that begins the same way, or else the model's ghost text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document

from gpt2cli.suggest.drawing import GHOST_PAUSE_S
from gpt2cli.suggest.ghost import Ghost

SUGGESTED_FROM = 1000
"""How many of the last lines are looked through for a suggestion, at every key."""


class TypedSuggestions(AutoSuggest):
    """The rest of an earlier line at once, else after a pause what ``ghost`` draws where it is ``wanted``."""

    def __init__(
        self, ghost: Ghost | None = None, wanted: Callable[[str], bool] = lambda text: False
    ) -> None:
        self._ghost, self._wanted = ghost, wanted
        self._buffer: Buffer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, buffer: Buffer) -> None:
        """Ask for ghost text whenever a person pauses in ``buffer``."""
        self._buffer = buffer
        buffer.on_text_changed += self._typed

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:
        text = document.text
        if text.strip() and "\n" not in text:
            for line in reversed(buffer.history.get_strings()[-SUGGESTED_FROM:]):
                if line.startswith(text) and (rest := line[len(text) :].partition("\n")[0]):
                    return Suggestion(rest)
        rest = self._ghost.behind(text) if self._ghost is not None and self._wanted(text) else ""
        return Suggestion(rest) if rest else None

    def news(self) -> None:
        """There is more of the ghost text; from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                # The loop may have been closed just now.
                self._loop.call_soon_threadsafe(self._show)

    def rest(self) -> None:
        """The prompt is over: nothing is drawn any more, and nothing asked for. Waits for a step at most."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ghost is not None:
            self._ghost.pause()

    def _typed(self, buffer: Buffer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ghost is None or not self._wanted(buffer.text):
            return
        if not self._ghost.behind(buffer.text):
            self._ghost.stop()
            with contextlib.suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
                self._timer = self._loop.call_later(GHOST_PAUSE_S, self._ask)

    def _ask(self) -> None:
        buffer, ghost = self._buffer, self._ghost
        if buffer is None or ghost is None or buffer.suggestion is not None:
            return
        if buffer.document.is_cursor_at_the_end and self._wanted(buffer.text):
            ghost.ask(buffer.text)

    def _show(self) -> None:
        buffer, ghost = self._buffer, self._ghost
        if buffer is None or ghost is None or not buffer.document.is_cursor_at_the_end:
            return
        rest = ghost.behind(buffer.text)
        known = buffer.suggestion.text if buffer.suggestion is not None else ""
        if rest and rest.startswith(known) and rest != known:
            buffer.suggestion = Suggestion(rest)
            buffer.on_suggestion_set.fire()
