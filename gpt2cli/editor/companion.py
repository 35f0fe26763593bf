"""The model beside the writer: suggestions, reading ahead and ghost text, in one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import MAX_SEED, SamplingOptions
from gpt2cli.repl.loader import Loader
from gpt2cli.suggest.drawing import GHOST_TOKENS, SPARE, Drawing, Suggestion, draw, read_ahead
from gpt2cli.suggest.ghost import Ghost
from gpt2cli.suggest.window import TextWindow, next_word, whole_words, without_last_space
from gpt2cli.suggest.worker import Wanted, Worker

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine

SUGGESTIONS = 3
SEEDS_APART = 8
"""Requests take their seeds so far apart; no two texts of a session have the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a session's suggestions have in common. ``given`` are options over the model's own."""

    model: str
    revision: str | None
    given: Mapping[str, Any]
    max_new_tokens: int
    seed: int


class Companion:
    """Draws what may come next after a text. ``changed`` is called from its thread when there is news.

    ``drawing`` are the suggestions that stand on the screen, of which ``chosen`` is marked; None for none.
    """

    def __init__(self, load: Callable[[], Engine], asked: Asked, changed: Callable[[], None]) -> None:
        self.asked = asked
        self._changed = changed
        self.loader = Loader(load, self._loaded)
        self.when_loaded: Callable[[], None] = lambda: None
        self._worker = Worker()
        self._window: TextWindow | None = None
        self.ghost = Ghost(self._worker, self._prepare, changed)
        self.drawing: Drawing | None = None
        self.chosen = self._requests = 0
        self.dropped = 0
        """Characters before those that the model saw last."""
        self.options: dict[str, Any] = {}
        """What the suggestions were drawn with, the model's own options included."""

    @property
    def state(self) -> str:
        """Why there are no suggestions; empty where nothing is in the way."""
        if not self.loader.done:
            return "loading"
        return f"no model: {self.loader.error}" if self.loader.error is not None else ""

    @property
    def shown(self) -> list[Suggestion]:
        """The suggestions as far as they are drawn."""
        return self.drawing.shown if self.drawing is not None else []

    @property
    def selected(self) -> Suggestion | None:
        """The one that is chosen, where it has a text."""
        shown = self.shown
        return shown[self.chosen] if self.chosen < len(shown) and shown[self.chosen].text else None

    def suggest(self, text: str) -> None:
        """Draw suggestions for what may follow ``text``, and show them as they come."""
        self.ghost.drop()
        drawing = self.drawing = Drawing(wanted=SUGGESTIONS)
        self.chosen = 0
        number, self._requests = self._requests, self._requests + 1
        seed = (self.asked.seed + number * SEEDS_APART) % (MAX_SEED - SEEDS_APART)
        self._worker.do(lambda wanted: self._draw(text, seed, drawing, wanted))

    def read(self, text: str) -> None:
        """Have the model read what of ``text`` will hardly change, so that suggestions come at once."""
        if self.loader.error is None:
            self._worker.do(lambda wanted: self._read(whole_words(text), wanted))

    def stop(self) -> None:
        """End what is being done, at its next step; what is drawn stays."""
        self._worker.stop()
        if self.drawing is not None:
            self.drawing.done = True

    def drop(self) -> None:
        """Show no suggestions any more."""
        if self.drawing is not None:
            self.stop()
            self.drawing = None

    def choose(self, index: int) -> None:
        """Mark a suggestion, counted from 0, where there is one."""
        if 0 <= index < len(self.shown):
            self.chosen = index

    def take(self, *, word: bool) -> tuple[str, Suggestion] | None:
        """The text of the suggestion that is chosen, or its first word; what is left of it stays.

        None where there is no text yet.
        """
        found = self.selected
        if found is None:
            return None
        self.stop()
        text = next_word(found.text) if word else found.text
        rest = found.text[len(text) :]
        if rest:
            left = Suggestion(found.seed, rest, done=True)
            self.drawing, self.chosen = Drawing([left], wanted=1, done=True), 0
        else:
            self.drawing = None
        return text, found

    def close(self) -> bool:
        """End the thread; false where it cannot be ended because the model still loads."""
        self._worker.stop()
        if self.loader.running:
            return False
        self._worker.close()
        return True

    def _loaded(self) -> None:
        self._changed()
        self.when_loaded()

    def _engine(self, wanted: Wanted) -> Engine | None:
        """The engine, once it is loaded; None where nobody waits any more. Raises what loading raised."""
        if not self.loader.wait(lambda: not wanted()):
            return None
        engine = self.loader.result()
        if self._window is None:
            room = max(self.asked.max_new_tokens, GHOST_TOKENS)
            self._window = TextWindow(engine.encode, engine.config.n_positions - room)
        return engine

    def _ids(self, text: str) -> list[int]:
        assert self._window is not None
        seen = self._window.see(text)
        self.dropped = seen.dropped
        return seen.ids

    def _prepare(self, text: str) -> tuple[Engine, list[int]] | None:
        if not self.loader.done or self.loader.error is not None:
            return None
        engine = self._engine(lambda: True)
        return None if engine is None else (engine, self._ids(text))

    def _read(self, text: str, wanted: Wanted) -> None:
        try:
            engine = self._engine(wanted)
            if engine is None or not text:
                return
            before, ids = self.dropped, self._ids(text)
            read_ahead(engine, ids, wanted, to_the_end=True)
            if self.dropped != before:
                self._changed()
        except Exception:
            # Who asks for suggestions is told.
            return

    def _draw(self, text: str, seed: int, drawing: Drawing, wanted: Wanted) -> None:
        try:
            engine = self._engine(wanted)
            if engine is None:
                return
            seen, after_space = without_last_space(text)
            length = self.asked.max_new_tokens
            options = engine.options(**self.asked.given, seed=seed, max_new_tokens=length)
            if not options.greedy:
                count = SUGGESTIONS + (SPARE if after_space else 0)
                options = replace(options, num_return_sequences=count)
            self.options = {
                "max_new_tokens": length,
                **{each.name: getattr(options, each.name) for each in fields(SamplingOptions)},
            }
            ids = self._ids(seen)
            draw(engine, ids, options, drawing, wanted, after_space=after_space, changed=self._changed)
            if after_space and not drawing.shown and wanted():
                # For the model the last word was not complete; then it has to see the space.
                options = replace(
                    options, num_return_sequences=min(options.num_return_sequences, SUGGESTIONS)
                )
                draw(engine, self._ids(text), options, drawing, wanted, changed=self._changed)
        except Exception as error:
            drawing.error = error if isinstance(error, Gpt2cliError) else Gpt2cliError(repr(error))
        finally:
            drawing.done = True
            self._changed()
