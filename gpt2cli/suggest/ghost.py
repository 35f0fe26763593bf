"""Ghost text: what the model would type next, behind the cursor after a pause; for chat and the editor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2cli.suggest.drawing import Drawing, draw, greedy
from gpt2cli.suggest.window import without_last_space
from gpt2cli.suggest.worker import Wanted, Worker

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine

Prepare = Callable[[str], "tuple[Engine, list[int]] | None"]
"""The engine, and the ids of what it is to continue; None where there is nothing to say."""


class Ghost:
    """The likeliest few words behind a text. ``prepare`` is called in the worker's thread, without the text's
    last space; ``changed`` is called there, too, whenever there is more to show.
    """

    def __init__(self, worker: Worker, prepare: Prepare, changed: Callable[[], None]) -> None:
        self._worker, self._prepare, self._changed = worker, prepare, changed
        self._shown = ("", "")

    def behind(self, text: str) -> str:
        """The ghost text behind ``text``; what the user types along with it is no part of it any more."""
        known, rest = self._shown
        if rest and text.startswith(known) and rest.startswith(text[len(known) :]):
            return rest[len(text) - len(known) :]
        return ""

    def drop(self) -> None:
        """Show nothing."""
        self._shown = ("", "")

    def stop(self) -> None:
        """End the drawing at its next step."""
        self._worker.stop()

    def pause(self) -> None:
        """End the drawing, and wait until it has ended: the engine is free."""
        self._worker.pause()

    def ask(self, text: str) -> None:
        """Find out what may stand behind ``text``. Errors are nobody's business: then there is no ghost."""
        self._worker.do(lambda wanted: self._draw(text, wanted))

    def _draw(self, text: str, wanted: Wanted) -> None:
        drawing = Drawing()

        def more() -> None:
            if wanted() and drawing.shown and drawing.shown[0].text:
                self._shown = (text, drawing.shown[0].text)
                self._changed()

        seen, after_space = without_last_space(text)
        try:
            prepared = self._prepare(seen)
            if prepared is None or not wanted():
                return
            engine, ids = prepared
            draw(engine, ids, greedy(engine), drawing, wanted, after_space=after_space, changed=more)
        except Exception as error:
            drawing.error = error
