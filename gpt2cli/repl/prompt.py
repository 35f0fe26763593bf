"""Where the user types: one prompt_toolkit session, and plain lines on a terminal that can do no more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from gpt2cli.errors import Gpt2cliError, Terminated
from gpt2cli.repl.tty import Tty
from gpt2cli.repl.typed_ghost import TypedSuggestions
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import sanitize

MARK = "> "
QUOTES = '"""'
MENU_ROWS = 8

_STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "bottom-toolbar": "reverse",
        "auto-suggestion": "ansibrightblack",
        "completion-menu": "noreverse fg:default bg:default",
        "completion-menu.completion": "noreverse fg:default bg:default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "noreverse bg:default ansibrightblack",
        "completion-menu.meta.completion.current": "reverse",
    }
)


class LineStore(Protocol):
    """Where lines are kept from one session to the next, the oldest first."""

    def load(self) -> list[str]:
        """All of them."""
        ...

    def append(self, text: str) -> None:
        """One more."""
        ...


class StoredHistory(History):
    """The lines of a `LineStore` for prompt_toolkit, sanitised: a file may hold anything."""

    def __init__(self, store: LineStore, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._store, self._warn = store, warn

    def load_history_strings(self) -> Iterable[str]:
        try:
            lines = self._store.load()
        except (Gpt2cliError, OSError) as error:
            self._warn(f"history: {error}")
            return []
        return [sanitize(line) for line in reversed(lines)]

    def store_string(self, string: str) -> None:
        try:
            self._store.append(string)
        except (Gpt2cliError, OSError) as error:
            self._warn(f"history: {error}")


def is_unfinished(text: str) -> bool:
    """Whether more lines must follow: an open ``\"\"\"``, or a backslash at the end."""
    if text.lstrip().startswith(QUOTES):
        inner = text.lstrip()[len(QUOTES) :]
        return QUOTES not in inner
    return text.endswith("\\") and not text.endswith("\\\\")


def message_of(text: str) -> str:
    """What was meant: without the quotes around it, or the first slash of a line that begins with two."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and stripped.endswith(QUOTES) and len(stripped) >= 2 * len(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text[1:] if text.startswith("//") and "\n" not in text else text


def begun_message(text: str) -> str:
    """What was meant by a text that may not be complete yet."""
    stripped = text.lstrip()
    return stripped[len(QUOTES) :].lstrip("\n") if stripped.startswith(QUOTES) else message_of(text)


class Prompt:
    """Reads messages. ``status`` gives the bar for a width; ``warn`` is told what the history cannot do."""

    def __init__(
        self,
        terminal: Terminal,
        tty: Tty,
        *,
        completer: Completer,
        status: Callable[[int], str],
        history: LineStore,
        warn: Callable[[str], None],
        editing_mode: str = "emacs",
        suggestions: TypedSuggestions | None = None,
    ) -> None:
        self._suggestions = suggestions or TypedSuggestions()
        self._terminal, self._tty = terminal, tty
        self.dumb = terminal.environ.get("TERM", "dumb") in ("dumb", "unknown")
        self._history: History = StoredHistory(history, warn)
        self._session: PromptSession[str] | None = None
        self._question: PromptSession[str] | None = None
        self._leave: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self.left_empty = True
        """Whether nothing was typed when the prompt was left."""
        if self.dumb:
            return
        depth = None if terminal.styled else ColorDepth.DEPTH_1_BIT
        session = self._session = PromptSession[str](
            MARK,
            multiline=True,
            history=self._history,
            auto_suggest=self._suggestions,
            completer=completer,
            # Lines are reserved for the menu only while a command is typed.
            complete_while_typing=Condition(_types_a_command),
            reserve_space_for_menu=MENU_ROWS,
            key_bindings=_key_bindings(),
            bottom_toolbar=lambda: status(get_app().output.get_size().columns),
            enable_suspend=True,
            enable_open_in_editor=True,
            tempfile_suffix=".txt",
            style=_STYLE,
            color_depth=depth,
            editing_mode=_MODES[editing_mode],
        )
        self._suggestions.watch(session.default_buffer)
        self._question = PromptSession[str](history=InMemoryHistory(), color_depth=depth)
        for one in (session, self._question):
            # A terminal that does not tell where its cursor is gets no warning every time.
            one.app.renderer.cpr_not_supported_callback = None
            one.app.ttimeoutlen = 0.1

    def set_editing_mode(self, name: str) -> None:
        """``emacs`` or ``vi`` keys."""
        if self._session is not None:
            self._session.editing_mode = _MODES[name]

    def refresh(self) -> None:
        """Draw the bar again, if there is one; from any thread."""
        if self._session is not None:
            self._session.app.invalidate()

    def abort(self, error: BaseException) -> None:
        """Have the prompt, now or the next, raise ``error``; from any thread. What is typed is remembered."""
        self._error = error
        leave = self._leave
        if leave is not None:
            leave()

    def read(self, default: str = "", first_shown: Callable[[], None] | None = None) -> str:
        """What the user sends.

        Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, `Terminated`, and what `abort` was given.

        ``first_shown`` is called when the prompt stands on the screen.
        """
        if self._session is None:
            if first_shown is not None:
                first_shown()
            return self._read_plain(MARK, more=True)
        return self._run(self._session, None, default, first_shown)

    def ask(self, question: str) -> str:
        """The answer to a question; empty for Ctrl-C and Ctrl-D. Raises `Terminated`."""
        try:
            if self._question is None:
                return self._read_plain(question)
            return self._run(self._question, question, "", None)
        except (EOFError, KeyboardInterrupt):
            return ""

    def _run(
        self,
        session: PromptSession[str],
        message: str | None,
        default: str,
        first_shown: Callable[[], None] | None,
    ) -> str:
        loop: asyncio.AbstractEventLoop | None = None

        def begin() -> None:
            nonlocal loop
            loop = asyncio.get_running_loop()
            self._leave = end
            if self._error is not None:
                loop.call_soon(leave)
            if first_shown is not None:
                # After the first drawing, which is already in line.
                loop.call_later(0.01, first_shown)

        def leave() -> None:
            if session.app.is_running and not session.app.is_done:
                session.app.exit(exception=self._error or Terminated())

        def end() -> None:
            with contextlib.suppress(RuntimeError):
                # The loop may have been closed just now.
                if loop is not None:
                    loop.call_soon_threadsafe(leave)

        try:
            with self._tty.ending_with(end):
                text: str = session.prompt(message, default=default, pre_run=begin)
                return text
        finally:
            self._leave = None
            self._suggestions.rest()
            self._look_ahead(session)
            self.left_empty = not session.default_buffer.text
            if self._error is not None and not self.left_empty:
                self._history.append_string(session.default_buffer.text)

    def _look_ahead(self, session: PromptSession[str]) -> None:
        """A Ctrl-C typed right behind Enter, while the prompt still took it for a key, is one after all.

        As everywhere, what was typed before it is dropped.
        """
        ahead = [*get_typeahead(session.input), *session.input.read_keys()]
        interrupts = [at for at, press in enumerate(ahead) if press.key == Keys.ControlC]
        if interrupts:
            self._tty.interrupted = True
            ahead = ahead[interrupts[-1] + 1 :]
        store_typeahead(session.input, ahead)

    def _read_plain(self, mark: str, *, more: bool = False) -> str:
        """A line as the terminal itself edits it, and those that it asks for with it."""

        def stop() -> None:
            raise KeyboardInterrupt

        text, self.left_empty = "", True
        if self._error is not None:
            raise self._error
        with self._tty.given_back(), self._tty.interruptible(stop):
            while True:
                self._terminal.write(mark)
                line = os.read(0, 1 << 16).decode("utf-8", "replace")
                if not line:
                    self._terminal.write("\n")
                    raise EOFError
                text += line.removesuffix("\n")
                if not more or not is_unfinished(text):
                    break
                text, mark = text.removesuffix("\\") + "\n", " " * len(MARK)
        if more:
            self._history.append_string(text)
        return text


_MODES = {"emacs": EditingMode.EMACS, "vi": EditingMode.VI}


def _types_a_command() -> bool:
    text = get_app().current_buffer.text
    return text.startswith("/") and "\n" not in text


def _key_bindings() -> KeyBindings:
    """Enter sends what is finished, Alt+Enter is a new line, a paste is one text."""
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and is_unfinished(buffer.text):
            if buffer.text.endswith("\\"):
                buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(sanitize(event.data))

    return bindings


def edit_in_editor(tty: Tty, terminal: Terminal, text: str) -> str | None:
    """``text`` as $VISUAL or $EDITOR leaves it; None when the editor failed. Raises `Gpt2cliError`."""
    command = terminal.environ.get("VISUAL") or terminal.environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Gpt2cliError(f"$EDITOR: {error}") from None
    descriptor, path = tempfile.mkstemp(prefix="gpt2cli-", suffix=".txt")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        with tty.given_back():
            code = subprocess.run([*words, path], check=False).returncode
        if code:
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return sanitize(file.read()).removesuffix("\n")
    except OSError as error:
        raise Gpt2cliError(
            f"cannot run the editor {words[0]!r}: {error.strerror or error}",
            hint="name another one in the environment: EDITOR=nano",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
