"""The editor on the terminal: text, suggestions beneath it, a bar; one prompt_toolkit application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from gpt2cli.editor.companion import Companion
from gpt2cli.editor.dialogs import Dialogs
from gpt2cli.editor.keys import key_bindings
from gpt2cli.editor.opened import OpenText
from gpt2cli.editor.panel import Facts, bar, rows_each, seen_note, suggestion_lines
from gpt2cli.editor.prose import ProseBuffer, ProseControl
from gpt2cli.editor.spans import Draw
from gpt2cli.errors import Terminated
from gpt2cli.repl.status import short_name
from gpt2cli.repl.text_layout import wrapped
from gpt2cli.repl.tty import Tty
from gpt2cli.suggest.drawing import GHOST_PAUSE_S
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

READ_PAUSE_S = 0.12
"""After a key, before the model reads what is new."""
KEYS = ("Tab suggests  ^S saves  ^Q leaves", "Tab ^S ^Q")
TAKE_KEYS = ("Enter takes  → a word  ↑↓ choose", "Enter → ↑↓")
_COLOURED = {
    "model": "ansicyan",
    "ghost": "ansibrightblack",
    "selected": "reverse",
    "bar": "reverse",
    "rule": "ansibrightblack",
    "suggestion": "",
    "suggestion.mark": "ansibrightblack",
    "suggestion.chosen": "bold ansicyan",
}
_PLAIN = {
    **_COLOURED,
    "model": "underline",
    "ghost": "italic",
    "rule": "",
    "suggestion.mark": "",
    "suggestion.chosen": "bold",
}
_MODES = {"emacs": EditingMode.EMACS, "vi": EditingMode.VI}


class Screen:
    """The editor of one text. It ends with the user's leave, or with `Terminated`."""

    def __init__(
        self,
        terminal: Terminal,
        opened: OpenText,
        companion: Callable[[Callable[[], None]], Companion],
        *,
        ghost: bool,
        editing_mode: str,
    ) -> None:
        self.opened, self._ghost = opened, ghost
        self.companion = companion(self._news)
        self.companion.when_loaded = lambda: self._soon(self._edited)
        self.buffer = ProseBuffer(opened.document)
        self.name_buffer = Buffer(multiline=False)
        self.dialogs = Dialogs(self)
        self.keeps_suggestions = False
        self._said = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.app = self._application(terminal, editing_mode)
        self.buffer.on_text_changed += lambda _: self._edited()
        self.buffer.on_cursor_position_changed += lambda _: self._moved()

    def run(self, tty: Tty) -> None:
        """Show the text until the user leaves. Raises `Terminated`, and what went wrong in the editor."""
        with tty.ending_with(lambda: self._soon(self._end)):
            self.app.run(pre_run=self._begin, set_exception_handler=False)

    def _application(self, terminal: Terminal, editing_mode: str) -> Application[None]:
        control = ProseControl(self.buffer, self.ghost_text)
        panel = FormattedTextControl(self._panel)
        naming = Condition(lambda: self.app.layout.has_focus(self.name_buffer))
        suggests = Condition(lambda: self.companion.drawing is not None)
        rows = HSplit(
            [
                Window(control, height=Dimension(min=1, weight=1)),
                ConditionalContainer(
                    HSplit(
                        [
                            Window(height=1, char="─", style="class:rule"),
                            Window(panel, height=lambda: self._panel_rows(), dont_extend_height=True),
                        ]
                    ),
                    suggests,
                ),
                ConditionalContainer(
                    Window(FormattedTextControl(self._bar), height=self._bar_rows, style="class:bar"), ~naming
                ),
                ConditionalContainer(
                    VSplit(
                        [
                            Window(FormattedTextControl(" Save as: "), width=10, style="class:bar"),
                            Window(BufferControl(self.name_buffer), height=1, style="class:bar"),
                        ]
                    ),
                    naming,
                ),
            ]
        )
        app = Application[None](
            Layout(rows, focused_element=control),
            key_bindings=key_bindings(self),
            style=Style.from_dict(_COLOURED if terminal.styled else _PLAIN),
            color_depth=None if terminal.styled else ColorDepth.DEPTH_1_BIT,
            editing_mode=_MODES[editing_mode],
            full_screen=True,
            enable_page_navigation_bindings=False,
        )
        app.ttimeoutlen, app.timeoutlen = 0.05, 0.3
        app.key_processor.before_key_press += lambda _: self._before_key()
        app.key_processor.after_key_press += lambda _: self._after_key()
        return app

    def _begin(self) -> None:
        """The first thing that runs in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._failed)
        self.opened.recovery.warn = self.say
        if found := self.opened.recovered():
            self.dialogs.offer(found)
        elif self.opened.notes:
            self.say(self.opened.notes.pop(0))
        # After the first drawing, which is already in line: the thread would hold it up.
        self._loop.call_later(0.01, self.companion.loader.start)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        error = context.get("exception")
        if self.app.is_running and not self.app.is_done:
            self.app.exit(
                exception=error if isinstance(error, Exception) else RuntimeError(context["message"])
            )

    def _soon(self, act: Callable[[], None]) -> None:
        """Have something done in the event loop; from any thread and from a signal handler."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(act)

    def _news(self) -> None:
        self.app.invalidate()

    def _end(self) -> None:
        if self.app.is_running and not self.app.is_done:
            self.app.exit(exception=Terminated())

    # What keys do.

    def say(self, text: str) -> None:
        """A message in the bar, until the next key."""
        self._said = one_line(text)
        self.app.invalidate()

    def suggest(self) -> None:
        """Ask the model what may come at the cursor."""
        self.buffer.exit_selection()
        self.companion.suggest(self._before_cursor())

    def take(self, *, word: bool) -> None:
        """Put the chosen suggestion, or its first word, in at the cursor."""
        taken = self.companion.take(word=word)
        drawing = self.companion.drawing
        if taken is None:
            if drawing is not None and drawing.done:
                self.suggest()
            return
        text, suggestion = taken
        asked, model = self.companion.asked, self.buffer.model
        draw = Draw(
            model.next_number(), asked.model, asked.revision, suggestion.seed, dict(self.companion.options)
        )
        self.buffer.put(text, draw)

    def take_ghost(self) -> None:
        """Put the ghost text in."""
        text, asked, model = self.ghost_text(), self.companion.asked, self.buffer.model
        self.companion.ghost.drop()
        draw = Draw(model.next_number(), asked.model, asked.revision, 0, {"temperature": 0.0})
        self.buffer.put(text, draw)

    def interrupt(self) -> None:
        """End the drawing; the suggestions go, as with any key."""
        self.companion.stop()
        self.companion.ghost.drop()
        if self.companion.drawing is None:
            self.say("^Q leaves")

    def redraw(self) -> None:
        """Draw the screen anew."""
        self.app.renderer.clear()

    # What follows a key.

    def _before_key(self) -> None:
        self.keeps_suggestions = False
        if self.dialogs.question is None:
            self._said = ""

    def _after_key(self) -> None:
        if not self.keeps_suggestions and self.companion.drawing is not None:
            self.companion.drop()
            self._look_again()

    def _edited(self) -> None:
        """The text has changed, or the model is there: when the user pauses, the model looks at it."""
        self._look_again()

    def _moved(self) -> None:
        self.buffer.model.pause_unless_at(self.buffer.cursor_position)
        self._look_again()

    def _look_again(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        if self._loop is None or self.companion.drawing is not None:
            return
        self.companion.stop()
        self._timers.append(self._loop.call_later(READ_PAUSE_S, self._read))
        if self._ghost:
            self._timers.append(self._loop.call_later(GHOST_PAUSE_S, self._ask_ghost))

    def _read(self) -> None:
        if self.companion.drawing is None:
            self.companion.read(self._before_cursor())

    def _ask_ghost(self) -> None:
        text, at = self.buffer.text, self.buffer.cursor_position
        at_end = at == len(text) or text[at] == "\n"
        if self.companion.drawing is None and at_end and at and not self.ghost_text():
            self.companion.ghost.ask(text[:at])

    def _before_cursor(self) -> str:
        return self.buffer.text[: self.buffer.cursor_position]

    # What is drawn.

    def ghost_text(self) -> str:
        """What stands dim behind the cursor."""
        if not self._ghost or self.companion.drawing is not None:
            return ""
        text, at = self.buffer.text, self.buffer.cursor_position
        if at < len(text) and text[at] != "\n":
            return ""
        return self.companion.ghost.behind(text[:at])

    def _panel_rows(self) -> int:
        drawing = self.companion.drawing
        size = self.app.output.get_size()
        wanted = drawing.wanted if drawing is not None else 1
        return wanted * rows_each(self.companion.asked.max_new_tokens, wanted, size.columns, size.rows)

    def _panel(self) -> StyleAndTextTuples:
        drawing = self.companion.drawing
        if drawing is None:
            return []
        size = self.app.output.get_size()
        rows = rows_each(self.companion.asked.max_new_tokens, drawing.wanted, size.columns, size.rows)
        return suggestion_lines(drawing, self.companion.chosen, rows, size.columns)

    def _question_lines(self) -> list[str]:
        question = self.dialogs.question
        width = self.app.output.get_size().columns - 2
        return wrapped(one_line(question.text), width) if question is not None else []

    def _bar_rows(self) -> int:
        return max(1, len(self._question_lines()))

    def _bar(self) -> StyleAndTextTuples:
        if self.dialogs.question is not None:
            return [("", "\n".join(f" {line}" for line in self._question_lines()))]
        width = self.app.output.get_size().columns - 1
        companion, opened, drawing = self.companion, self.opened, self.companion.drawing
        said, keys = self._said or companion.state, KEYS
        if drawing is not None:
            keys = TAKE_KEYS if drawing.shown else ("", "")
            said = said or self._state_of_drawing()
        text, at = self.buffer.text, self.buffer.cursor_position
        facts = Facts(
            name=opened.name,
            modified=opened.document.modified,
            said=said,
            model=short_name(companion.asked.model),
            seen=seen_note(companion.dropped, at),
            place=f"line {text.count(chr(10), 0, at) + 1:,} of {text.count(chr(10)) + 1:,}",
            keys=keys[0],
            short_keys=keys[1],
        )
        return [("", f" {bar(facts, width)}")]

    def _state_of_drawing(self) -> str:
        drawing = self.companion.drawing
        assert drawing is not None
        if drawing.error is not None:
            return f"error: {drawing.error}"
        if not drawing.done:
            return "drawing" if drawing.shown else "reading"
        return "" if drawing.shown else "no suggestions; Tab draws again"
