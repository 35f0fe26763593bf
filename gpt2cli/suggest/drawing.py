"""Drawing continuations of a text step by step, so that a key can end it at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.suggest.worker import Wanted
from gpt2cli.text.sanitize import Sanitizer

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.options import GenerateOptions

PIECE = 64
"""Tokens that are read at a time: a pass of them costs about two steps of drawing."""
SPARE = 2
"""So many more are drawn where a space stands before the cursor: not all go on with another word."""
GHOST_TOKENS = 8
"""The most tokens of a ghost text: a few words."""
GHOST_PAUSE_S = 0.35
"""After a key, before the model is asked what may come next."""


@dataclass
class Suggestion:
    """One continuation as far as it is drawn."""

    seed: int
    text: str = ""
    done: bool = False
    ended: bool = False
    """Whether the model ended the text there."""
    _clean: Sanitizer = field(default_factory=Sanitizer, repr=False)

    def add(self, text: str, *, after_space: bool) -> None:
        """More of it, as it was generated; its first space stands in the text already ``after_space``."""
        text, broken, _ = self._clean.push(text).partition("\ufffd")
        if after_space and not self.text:
            text = text.removeprefix(" ")
        self.text += text
        # Bytes that are no character end it: they are not to get into anybody's text.
        self.done = self.done or bool(broken)


@dataclass
class Drawing:
    """The continuations of one request, as they grow. One thread writes it, another one reads it."""

    suggestions: list[Suggestion] = field(default_factory=list)
    wanted: int = 1
    done: bool = False
    cached_tokens: int = 0
    prompt_tokens: int = 0
    first_s: float | None = None
    """From the beginning of the drawing to the first text."""
    error: Exception | None = None

    @property
    def shown(self) -> list[Suggestion]:
        """Those that can be taken, in the order of their seeds."""
        return [each for each in self.suggestions if each.text or not each.done][: self.wanted]


def draw(
    engine: Engine,
    ids: Sequence[int],
    options: GenerateOptions,
    drawing: Drawing,
    wanted: Wanted,
    *,
    after_space: bool = False,
    changed: Callable[[], None] = lambda: None,
) -> None:
    """Draw ``options.num_return_sequences`` continuations of ``ids`` in one batch into ``drawing``.

    ``changed`` is called whenever there is more to show. With ``after_space`` the text has a space behind
    ``ids``: a continuation that begins with no space does not fit and is left out. Raises what
    `Engine.stream` raises.
    """
    started = time.perf_counter()
    read_ahead(engine, ids, wanted)
    if not wanted():
        return
    options = replace(options, draft="off").settled()
    drawing.done = False
    drawing.suggestions = [Suggestion(seed) for seed in options.seeds]
    begun: set[int] = set()
    stream = engine.stream(ids, options)
    try:
        for chunk in stream:
            if not wanted():
                return
            one = drawing.suggestions[chunk.sequence]
            if chunk.stats is not None:
                drawing.cached_tokens = chunk.stats.cached_tokens
                drawing.prompt_tokens = chunk.stats.prompt_tokens
            if chunk.text and not one.done:
                if after_space and chunk.sequence not in begun and not chunk.text[0].isspace():
                    one.done = True
                begun.add(chunk.sequence)
                if not one.done:
                    one.add(chunk.text, after_space=after_space)
            if chunk.finish_reason is not None:
                one.text = one.text.rstrip(" ")
                one.done, one.ended = True, chunk.finish_reason == "eos"
            if any(each.text for each in drawing.suggestions) and drawing.first_s is None:
                drawing.first_s = time.perf_counter() - started
            changed()
    finally:
        stream.close()
        drawing.done = True
    changed()


def read_ahead(engine: Engine, ids: Sequence[int], wanted: Wanted, *, to_the_end: bool = False) -> None:
    """Have the engine read ``ids`` in pieces, so that what follows computes only what is new.

    Less than a piece is left to what follows, unless it is to be read ``to_the_end``. What is read already
    is not read again. Raises what `Engine.stream` raises.
    """
    read = engine.known_prefix(ids)
    options = engine.options(max_new_tokens=1, temperature=0.0, draft="off", ignore_eos=True)
    while read < len(ids) - (0 if to_the_end else PIECE) and wanted():
        read = min(read + PIECE, len(ids))
        for _ in engine.stream(ids[:read], options):
            pass


def greedy(engine: Engine, given: dict[str, Any] | None = None) -> GenerateOptions:
    """The options of a ghost text: the likeliest few words, to the end of the line."""
    return engine.options(
        **{**(given or {}), "max_new_tokens": GHOST_TOKENS, "temperature": 0.0, "stop": ("\n",)}
    )
