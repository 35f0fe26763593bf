"""What `inspect` and `compare` draw, made of plain data: tables, and texts beside each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpt2cli.terminal.heat import level_style
from gpt2cli.text.sanitize import one_line, sanitize
from gpt2cli.text.visible import visible

MIN_COLUMN = 24
"""Texts stand beside each other where each has as many cells."""
PARTS = "▸"
"""Stands where a text leaves the one it is held against."""

UNLIMITED = 10_000

_DIM, _BOLD = Style(dim=True), Style(bold=True)


@dataclass(frozen=True, slots=True)
class Shade:
    """A cell of a table in the colour of a level."""

    text: str
    level: int | None


class Entries:
    """A cell of short texts, each on one line as a whole, as many beside each other as there is room for."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = [visible(text) for text in texts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = ""
        for text in self.texts:
            longer = f"{line}  {text}" if line else text
            if line and cell_len(longer) > options.max_width:
                yield Text(line)
                longer = text
            line = longer
        yield Text(line, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [cell_len(text) for text in self.texts]
        return Measurement(max(widths, default=0), sum(widths) + 2 * len(widths))


Cell = str | Shade | Entries


def heading(text: str) -> Text:
    """A line that says what follows."""
    return Text(one_line(text), style=_BOLD, overflow="fold")


def remark(text: str) -> Text:
    """Dim words under something."""
    return Text(one_line(text), style=_DIM, overflow="fold")


class Listing:
    """A table without lines. The columns ``right`` are aligned to the right, and ``folded`` ones give way
    where there is little room. Where there is too little even so, each row is a record of its own.
    """

    def __init__(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        right: Collection[int] = (),
        folded: Collection[int] = (),
    ) -> None:
        self._header = [one_line(name) for name in header]
        self._rows = [list(row) for row in rows]
        self._right, self._folded = right, folded

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        drawn = self._table()
        # Within the width there is, a table would say that it fits.
        wanted = Measurement.get(console, options.update(width=UNLIMITED), drawn).minimum
        if wanted <= options.max_width:
            yield drawn
            return
        for row in self._rows:
            yield Entries(self._record(row))

    def _table(self) -> Table:
        drawn = Table(box=None, pad_edge=False, padding=(0, 1), header_style=_DIM, show_edge=False)
        for number, name in enumerate(self._header):
            drawn.add_column(
                Text(name),
                justify="right" if number in self._right else "left",
                no_wrap=number not in self._folded,
                overflow="fold",
            )
        for row in self._rows:
            drawn.add_row(*map(_drawn_cell, row))
        return drawn

    def _record(self, row: Sequence[Cell]) -> Iterator[str]:
        """The cells of a row, each with the name of its column."""
        for name, cell in zip(self._header, row, strict=True):
            if isinstance(cell, Entries):
                yield from cell.texts
            elif text := cell.text if isinstance(cell, Shade) else cell:
                yield f"{name} {text}".strip()


def _drawn_cell(cell: Cell) -> RenderableType:
    if isinstance(cell, Entries):
        return cell
    if isinstance(cell, Shade):
        return Text(visible(cell.text), style=level_style(cell.level))
    return Text(visible(cell))


@dataclass(frozen=True, slots=True)
class Column:
    """One text among others: its title, the characters it shares with its reference, remarks below."""

    title: str
    text: str
    shared: int | None = None
    """None for a text that is held against no other."""
    remarks: tuple[str, ...] = ()


def side_by_side(columns: Sequence[Column], width: int) -> Iterator[RenderableType]:
    """Texts beside each other, or one below the other where there is too little room."""
    if len(columns) * (MIN_COLUMN + 2) - 2 > width:
        for number, column in enumerate(columns):
            if number:
                yield Text("")
            yield Text(one_line(column.title), style=_BOLD)
            yield _body(column)
            yield from (remark(line) for line in column.remarks)
        return
    grid = Table.grid(padding=(0, 2), expand=True, pad_edge=False)
    for _ in columns:
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(*(Text(one_line(column.title), style=_BOLD) for column in columns))
    grid.add_row(*map(_body, columns))
    for number in range(max(len(column.remarks) for column in columns)):
        grid.add_row(*(remark("".join(column.remarks[number : number + 1])) for column in columns))
    yield grid


def _body(column: Column) -> Text:
    """The text; what it shares with its reference is dim, and a mark stands where it leaves it."""
    body = Text(overflow="fold")
    if column.shared is None:
        return body.append(sanitize(column.text).expandtabs(4))
    same, own = column.text[: column.shared], column.text[column.shared :]
    body.append(sanitize(same).expandtabs(4), _DIM)
    if own or not same:
        body.append(PARTS, _BOLD)
    return body.append(sanitize(own).expandtabs(4))
