"""Saving and leaving, and what has to be asked first: questions in the bar."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer

from gpt2cli.editor.opened import OpenText
from gpt2cli.editor.prose import ProseBuffer
from gpt2cli.editor.recovery import Recovered
from gpt2cli.errors import Gpt2cliError
from gpt2cli.text.sanitize import one_line


class Editor(Protocol):
    """The part of the editor that its dialogs need; ``name_buffer`` is where a file's name is typed."""

    @property
    def opened(self) -> OpenText: ...
    @property
    def app(self) -> Application[None]: ...
    @property
    def buffer(self) -> ProseBuffer: ...
    @property
    def name_buffer(self) -> Buffer: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question in the bar, and what each key that answers it does."""

    text: str
    answers: Mapping[str, Callable[[], None]]


class Dialogs:
    """What the editor does with its file, step by step: a question may stand between any two of them."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.question: Question | None = None
        self._then: Callable[[], None] = lambda: None

    def save(self) -> None:
        """Write the file; one that another program has changed meanwhile only when the user says so."""
        self._save(lambda: None)

    def _save(self, then: Callable[[], None]) -> None:
        """Save, asking what has to be asked, and ``then`` go on; after an error nothing more is done."""
        opened = self._editor.opened
        self._then = then
        if opened.path is None:
            self._editor.name_buffer.reset()
            # vi: what is typed is the name, whatever the mode was.
            self._editor.app.vi_state.reset()
            self._editor.app.layout.focus(self._editor.name_buffer)
            return
        try:
            changed = opened.changed_elsewhere()
        except Gpt2cliError as error:
            self._editor.say(f"error: {error}")
            return
        if changed:
            self._ask(
                f"{opened.name} was changed by another program. Replace it? y n",
                {"y": lambda: self._write(opened.save)},
            )
        else:
            self._write(opened.save)

    def _write(self, save: Callable[[], None]) -> None:
        try:
            save()
        except (Gpt2cliError, OSError, ValueError) as error:
            # A name may be one that no file can have.
            self._editor.say(f"error: {error}")
            return
        self._editor.say(f"saved {len(self._editor.opened.disk or b''):,} bytes")
        self._then()

    def named(self, name: str) -> None:
        """A name was typed for a text that has none; an empty one is none."""
        self._editor.app.layout.focus(self._editor.buffer)
        if not name.strip():
            self._editor.say("not saved")
            return
        path = Path(os.path.expanduser(name.strip()))
        if os.path.exists(path):
            question = f"{one_line(path.name)} is there already. Replace it? y n"
            self._ask(question, {"y": lambda: self._write(lambda: self._editor.opened.name_as(path))})
        else:
            self._write(lambda: self._editor.opened.name_as(path))

    def leave(self) -> None:
        """End the editor; what is not saved is asked about."""
        if not self._editor.opened.document.modified:
            self._end()
            return
        answers = {"y": lambda: self._save(self._end), "n": self._end}
        self._ask(f"Save {self._editor.opened.name} before leaving? y n, Esc stays", answers)

    def offer(self, found: Recovered) -> None:
        """Ask whether to go on with what a program that was killed left."""
        when = time.strftime("%d %b %H:%M", time.localtime(found.time))
        size = f"{len(found.document.text):,} characters"
        answers = {
            "y": lambda: self._restore(found),
            "n": self._editor.opened.discard,
            "c-q": self._editor.app.exit,
        }
        self._ask(f"An unsaved text of {when} was found ({size}). Restore it? y n", answers)

    def _restore(self, found: Recovered) -> None:
        self._editor.opened.restore(found)
        self._editor.buffer.show(found.document, len(found.document.text))
        self._editor.say("restored; ^S saves it")

    def _end(self) -> None:
        """Leave; there is nothing to recover any more."""
        self._editor.opened.keeps_recovery = False
        self._editor.app.exit()

    def _ask(self, text: str, answers: Mapping[str, Callable[[], None]]) -> None:
        self.question = Question(text, answers)

    def answer(self, key: str) -> None:
        """A key pressed at a question. One that is no answer leaves a question that must be answered."""
        question = self.question
        assert question is not None
        act = question.answers.get(key.lower() if len(key) == 1 else key)
        must = "c-q" in question.answers
        if act is not None:
            self.question = None
            act()
        elif not must and key in ("n", "escape", "c-c", "c-q"):
            self.question = None
            self._editor.say("not saved")
