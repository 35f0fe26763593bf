"""The document on the screen: prompt_toolkit's buffer over ours, and a control that breaks between words."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.document import Document as Shown
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout.controls import BufferControl, GetLinePrefixCallable, UIContent
from prompt_toolkit.utils import get_cwidth

from gpt2cli.editor import layout
from gpt2cli.editor.document import Document, difference
from gpt2cli.editor.layout import Row
from gpt2cli.editor.spans import Origin
from gpt2cli.repl.status import clipped
from gpt2cli.text.reading import cleaned
from gpt2cli.text.visible import visible


class ProseBuffer(Buffer):
    """prompt_toolkit's buffer, whose changes are made in ``model``; undo and redo are the model's."""

    def __init__(self, model: Document) -> None:
        self.model = model
        self.columns, self.rows = 79, 20
        """Of the control that shows it, when it was drawn last."""
        # Where the text is gone on with: before its last line end.
        super().__init__(multiline=True, document=Shown(model.text, len(model.text.rstrip("\n"))))
        self.on_text_changed += self._take_in

    def show(self, model: Document, at: int) -> None:
        """Go on with another document, the cursor at ``at``."""
        self.model = model
        self.document = Shown(model.text, at)

    def _take_in(self, _: object) -> None:
        """Make a change of the buffer in the model; whatever command made it."""
        if self.text != self.model.text:
            self.model.replace(*difference(self.model.text, self.text, self.cursor_position))

    def put(self, text: str, origin: Origin) -> None:
        """Put a text of somebody else's in at the cursor, as a step of undo of its own."""
        self.model.pause()
        at = self.cursor_position
        self.model.replace(at, 0, text, origin)
        self.model.pause()
        self.document = Shown(self.model.text, at + len(text))

    def insert_text(
        self, data: str, overwrite: bool = False, move_cursor: bool = True, fire_event: bool = True
    ) -> None:
        super().insert_text(cleaned(data), overwrite, move_cursor, fire_event)

    def save_to_undo_stack(self, clear_redo_stack: bool = True) -> None:
        """The model knows by itself what a step is."""

    def undo(self) -> None:
        self._went(self.model.undo())

    def redo(self) -> None:
        self._went(self.model.redo())

    def _went(self, at: int | None) -> None:
        if at is not None:
            self.exit_selection()
            self.document = Shown(self.model.text, at)

    def validate_and_handle(self) -> None:
        """A text is no line that is handed in: what the commands that do so would clear stays."""

    def go_to_history(self, index: int) -> None:
        """To the line of that number, as vi's nG asks: a text has no history."""
        line = min(max(index, 0), self.document.line_count - 1)
        self.cursor_position = self.document.translate_row_col_to_index(line, 0)

    def cursor_left(self, count: int = 1) -> None:
        for _ in range(count):
            self.cursor_position = layout.boundary(self.text, self.cursor_position, forward=False)

    def cursor_right(self, count: int = 1) -> None:
        for _ in range(count):
            self.cursor_position = layout.boundary(self.text, self.cursor_position, forward=True)

    def delete_before_cursor(self, count: int = 1) -> str:
        if count != 1:
            return super().delete_before_cursor(min(count, self.cursor_position))
        start = layout.boundary(self.text, self.cursor_position, forward=False)
        return super().delete_before_cursor(self.cursor_position - start)

    def delete(self, count: int = 1) -> str:
        if count != 1:
            return super().delete(count)
        end = layout.boundary(self.text, self.cursor_position, forward=True)
        return super().delete(end - self.cursor_position)

    def auto_up(self, count: int = 1, go_to_start_of_line_if_history_changes: bool = False) -> None:
        self.move_rows(-count)

    def auto_down(self, count: int = 1, go_to_start_of_line_if_history_changes: bool = False) -> None:
        self.move_rows(count)

    def move_rows(self, count: int) -> None:
        """So many rows down, or up; at the first and the last row to its beginning and end."""
        text, at = self.text, self.cursor_position
        row = layout.row_at(text, at, self.columns)
        column = self.preferred_column
        column = layout.column_of(text, row, at) if column is None else column
        step = layout.row_after if count > 0 else layout.row_before
        for _ in range(abs(count)):
            further = step(text, row, self.columns)
            if further is None:
                self.cursor_position = row.end if count > 0 else row.start
                return
            row = further
        self.cursor_position = layout.place_in(text, row, column)
        self.preferred_column = column

    def move_in_row(self, *, to_end: bool) -> None:
        """To the beginning or the end of the row."""
        row = layout.row_at(self.text, self.cursor_position, self.columns)
        self.cursor_position = layout.place_in(self.text, row, 1 << 30) if to_end else row.start


class ProseControl(BufferControl):
    """Shows a `ProseBuffer`, and behind its cursor what ``ghost`` gives."""

    def __init__(self, buffer: ProseBuffer, ghost: Callable[[], str]) -> None:
        super().__init__(buffer)
        self.prose, self._ghost = buffer, ghost
        self._top = 0

    def preferred_height(
        self,
        width: int,
        max_available_height: int,
        wrap_lines: bool,
        get_line_prefix: GetLinePrefixCallable | None,
    ) -> int | None:
        return None

    def create_content(self, width: int, height: int, preview_search: bool = False) -> UIContent:
        """The rows that fit, the cursor's among them; its column has room behind the last character."""
        buffer = self.prose
        text, at = buffer.text, buffer.cursor_position
        columns = buffer.columns = max(2, width - 1)
        buffer.rows = height
        top = layout.top_for(text, self._top, at, columns, max(1, height))
        self._top = top.start
        rows = list(islice(layout.rows_from(text, top, columns), max(1, height)))
        while len(rows) < height and (above := layout.row_before(text, rows[0], columns)) is not None:
            # The screen has become larger, or the text shorter.
            rows.insert(0, above)
            self._top = above.start
        here = layout.row_at(text, at, columns)
        y = next((number for number, row in enumerate(rows) if row.start == here.start), 0)
        x = min(layout.column_of(text, here, at), width - 1)
        lines = [self._line(text, row) for row in rows]
        ghost = visible(self._ghost()) if at == len(text) or text[at] == "\n" else ""
        if ghost:
            lines[y] = [*lines[y], ("class:ghost", clipped(ghost, max(0, width - 1 - x)))]
        return UIContent(lambda n: lines[n], line_count=len(lines), cursor_position=Point(x=x, y=y))

    def _line(self, text: str, row: Row) -> StyleAndTextTuples:
        """A row in the styles of its origins and of the selection."""
        model = self.prose.model
        low = high = -1
        if self.prose.selection_state is not None:
            low, high = self.prose.document.selection_range()
        pieces: StyleAndTextTuples = []
        column = at = 0
        for run in model.runs:
            begin, end = max(at, row.start), min(at + run.length, row.end)
            at += run.length
            if begin < end:
                style = "class:model" if model.is_new(run.origin) else ""
                inside = [place for place in (low, high) if begin < place < end]
                for start, stop in zip([begin, *inside], [*inside, end], strict=True):
                    part = layout.shown(text[start:stop], column)
                    selected = " class:selected" if low <= start < high else ""
                    pieces.append((style + selected, part))
                    column += len(part) if part.isascii() else get_cwidth(part)
            if at >= row.end:
                break
        if low <= row.end < high:
            pieces.append(("class:selected", " "))
        return pieces
