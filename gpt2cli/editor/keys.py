"""The keys of the editor; what is not here is prompt_toolkit's, as emacs or vi has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition, emacs_mode, has_focus, vi_insert_mode
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.bindings.named_commands import get_by_name
from prompt_toolkit.keys import Keys

from gpt2cli.editor.companion import Companion
from gpt2cli.editor.dialogs import Dialogs
from gpt2cli.editor.prose import ProseBuffer
from gpt2cli.text.sanitize import sanitize

Act = Callable[[], None]


class Screen(Protocol):
    """The part of the editor that its keys need.

    A key that leaves the suggestions where they are sets ``keeps_suggestions``; after any other they go.
    """

    keeps_suggestions: bool

    @property
    def buffer(self) -> ProseBuffer: ...
    @property
    def name_buffer(self) -> Buffer: ...
    @property
    def companion(self) -> Companion: ...
    @property
    def dialogs(self) -> Dialogs: ...

    def suggest(self) -> None: ...
    def take(self, *, word: bool) -> None: ...
    def take_ghost(self) -> None: ...
    def ghost_text(self) -> str: ...
    def interrupt(self) -> None: ...
    def redraw(self) -> None: ...


def key_bindings(screen: Screen) -> KeyBindings:
    """All that the editor does by itself; of two that fit a key the later one is taken."""
    bindings = KeyBindings()
    _for_the_text(screen, bindings)
    _for_suggestions(screen, bindings)
    _for_names(screen, bindings)
    _for_questions(screen, bindings)
    return bindings


def _for_questions(screen: Screen, bindings: KeyBindings) -> None:
    """While a question stands in the bar every key is an answer, or nothing."""
    asked = Condition(lambda: screen.dialogs.question is not None)

    @bindings.add(Keys.Any, filter=asked, eager=True)
    def _(event: KeyPressEvent) -> None:
        screen.dialogs.answer(event.key_sequence[0].key)


def _for_names(screen: Screen, bindings: KeyBindings) -> None:
    """While the name of a file is typed."""
    naming = has_focus(screen.name_buffer)

    @bindings.add("enter", filter=naming)
    def _(event: KeyPressEvent) -> None:
        screen.dialogs.named(screen.name_buffer.text)

    @bindings.add("escape", filter=naming, eager=True)
    @bindings.add("c-c", filter=naming)
    @bindings.add("c-q", filter=naming)
    def _(event: KeyPressEvent) -> None:
        screen.dialogs.named("")


def _for_suggestions(screen: Screen, bindings: KeyBindings) -> None:
    companion = screen.companion
    asked = Condition(lambda: screen.dialogs.question is not None)
    writing = has_focus(screen.buffer) & ~asked & (emacs_mode | vi_insert_mode)
    there = writing & Condition(lambda: companion.drawing is not None)
    ghost = writing & Condition(lambda: bool(screen.ghost_text()))

    def add(*keys: str, act: Act, when: object = there) -> None:
        """Have a key do something and leave the suggestions where they are."""

        def handler(event: KeyPressEvent) -> None:
            screen.keeps_suggestions = True
            act()

        bindings.add(*keys, filter=when)(handler)  # type: ignore[arg-type]

    add("tab", act=screen.suggest, when=writing & ~there)
    for key in ("tab", "enter"):
        add(key, act=lambda: screen.take(word=False))
    add("right", act=lambda: screen.take(word=True))
    add("up", act=lambda: companion.choose(companion.chosen - 1))
    add("down", act=lambda: companion.choose(companion.chosen + 1))
    for number in (1, 2, 3):
        add(str(number), act=lambda number=number: companion.choose(number - 1))  # type: ignore[misc]
    add("right", act=screen.take_ghost, when=ghost & ~there)


def _for_the_text(screen: Screen, bindings: KeyBindings) -> None:
    buffer = screen.buffer
    asked = Condition(lambda: screen.dialogs.question is not None)
    text = has_focus(buffer) & ~asked
    writing = text & (emacs_mode | vi_insert_mode)

    def add(*keys: str, act: Act, when: object = text) -> None:
        bindings.add(*keys, filter=when)(lambda event: act())  # type: ignore[arg-type]

    add("c-s", act=screen.dialogs.save)
    add("c-q", act=screen.dialogs.leave)
    for key in ("c-c", Keys.SIGINT):
        add(key, act=screen.interrupt)
    # Escape alone drops what is suggested, as any key does; it is not held back for long.
    add("escape", act=lambda: None, when=text & emacs_mode)
    add("c-z", act=buffer.undo)
    for key in ("c-y", "escape z"):
        add(*key.split(), act=buffer.redo, when=text & emacs_mode)
    bindings.add("c-v", filter=text & emacs_mode)(get_by_name("yank"))
    for key, command in (("<", "beginning-of-buffer"), (">", "end-of-buffer")):
        bindings.add("escape", key, filter=text & emacs_mode)(get_by_name(command))
    for key in ("c-o", "escape #"):
        # They hand in a line.
        add(*key.split(), act=lambda: None, when=text & emacs_mode)
    add("left", act=buffer.cursor_left, when=writing)
    add("right", act=buffer.cursor_right, when=writing)
    for key in ("home", "end"):
        add(key, act=lambda key=key: buffer.move_in_row(to_end=key == "end"), when=writing)  # type: ignore[misc]
    add("pageup", act=lambda: buffer.move_rows(1 - buffer.rows))
    add("pagedown", act=lambda: buffer.move_rows(buffer.rows - 1))
    add("c-l", act=screen.redraw)
    for key in ("c-up", "c-down"):
        add(key, act=lambda: None)

    @bindings.add("enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        buffer.newline(copy_margin=False)

    @bindings.add(Keys.BracketedPaste, filter=text)
    def _(event: KeyPressEvent) -> None:
        buffer.model.pause()
        buffer.insert_text(sanitize(event.data))
        buffer.model.pause()
