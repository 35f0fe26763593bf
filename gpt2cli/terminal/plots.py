"""Line charts: as lines of text for a terminal, and as files with matplotlib."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.text.sanitize import one_line

Points = Sequence[tuple[float, float]]
"""(x, y); what is not finite is left out."""

MIN_WIDTH, MAX_WIDTH = 20, 300
MIN_ROWS = 2
MIN_TICKS = 2
LARGEST, SMALLEST = 1e100, 1e-100
"""Larger values are left out, smaller differences count as none: arithmetic would overflow."""

PLOT_SUFFIXES = (".svg", ".png")

_MARKS, _ASCII_MARKS = "■●◆▲✚", "*o#+x"
_LINE = "⠒⠒"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character, from U+2800 on: four rows of two dots."""


class _Axis:
    """The range of one coordinate, and the numbers that stand at it."""

    def __init__(self, values: Sequence[float], most_ticks: int) -> None:
        low, high = min(values), max(values)
        if high - low <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):
            # Constant: in the middle of a range of its own size.
            room = abs(low) / 10 if abs(low) > SMALLEST else 0.5
            low, high = low - room, high + room
        self.low, self.high = low, high
        self.step = _nice_step(high - low, most_ticks)
        while len(self.ticks) < MIN_TICKS:
            self.step = _nice_step(self.step, 3)

    def share(self, value: float) -> float:
        """Where ``value`` lies, from 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    @property
    def ticks(self) -> list[float]:
        """The multiples of the step within the range."""
        first, last = math.ceil(self.low / self.step - 1e-6), math.floor(self.high / self.step + 1e-6)
        return [n * self.step for n in range(first, last + 1)]

    def label(self, value: float) -> str:
        """``value`` with as many digits as tell one tick from the next."""
        largest = max(abs(self.low), abs(self.high))
        if largest >= 1e12 or self.step < 1e-6:
            digits = max(0, math.floor(math.log10(largest)) - math.floor(math.log10(self.step)))
            return (
                "0"
                if not value
                else f"{value:.{min(digits, 12)}e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
            )
        for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if self.step >= unit / 10 and largest >= (10 * unit if name == "k" else unit):
                return f"{value / unit:.1f}".removesuffix(".0") + name if value else "0"
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        text = f"{value:.{digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text


def _nice_step(length: float, most: int) -> float:
    """The least of 1, 2, 5, 10, 20, … (or 0.5, 0.2, …) that gives at most ``most`` ticks."""
    rough = length / max(1, most)
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))


def chart(
    series: Mapping[str, Points],
    *,
    width: int,
    height: int,
    unicode: bool = True,
    x_label: str = "",
    y_label: str = "",
) -> list[str]:
    """``series`` as a chart of at most ``height`` lines, none wider than ``width``.

    The first series is a line, the others are marks over it. No lines at all where there is too little
    room or no point.
    """
    width = min(width, MAX_WIDTH)
    shown = {one_line(name): _finite(points) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    heading = one_line(y_label)
    rows = height - 3 - bool(heading)
    if width < MIN_WIDTH or rows < MIN_ROWS or not shown:
        return []

    everything = [point for points in shown.values() for point in points]
    vertical = _Axis([y for _, y in everything], max(MIN_TICKS, (rows + 1) // 3))
    labels = {row: text for text, row in _rows_of_ticks(vertical, rows)}
    margin = max(map(len, labels.values()), default=0)
    columns = width - margin - 2
    if columns < MIN_WIDTH // 3:
        return []
    xs = [x for x, _ in everything]
    if 0 < min(xs) <= max(xs) / 10:
        xs.append(0.0)
    horizontal = _Axis(xs, max(MIN_TICKS, columns // 10))

    canvas = _Canvas(columns, rows, horizontal, vertical, unicode)
    keys = [canvas.draw(points, number) for number, points in enumerate(shown.values())]
    tick, bar, corner, across, below = "┤│└─┬" if unicode else "+|+-+"
    lines = [heading] if heading else []
    for row, text in enumerate(canvas.rows()):
        lines.append(f"{labels.get(row, ''):>{margin}} {tick if row in labels else bar}{text}")
    ticks, numbers = _x_axis(horizontal, columns, across, below)
    lines.append(f"{'':{margin}} {corner}{ticks}")
    lines.append(f"{'':{margin}}  {numbers}")
    legend = " " * (margin + 2) + "   ".join(f"{key} {name}" for key, name in zip(keys, shown, strict=True))
    x_name = one_line(x_label)
    if x_name and (room := width - cell_len(legend) - cell_len(x_name)) >= 3:
        legend += " " * room + x_name
    lines.append(legend)
    return [_cut(line, width).rstrip() for line in lines]


def _finite(points: Points) -> list[tuple[float, float]]:
    """What can be drawn, in the order of x."""
    return sorted((x, y) for x, y in points if abs(x) <= LARGEST and abs(y) <= LARGEST)


def _rows_of_ticks(axis: _Axis, rows: int) -> list[tuple[str, int]]:
    return [(axis.label(tick), _place(1 - axis.share(tick), rows)) for tick in axis.ticks]


def _place(share: float, cells: int) -> int:
    """The cell of 0 … ``cells`` - 1 in which ``share`` of the length lies."""
    return min(cells - 1, int(share * cells))


def _x_axis(axis: _Axis, columns: int, across: str, below: str) -> tuple[str, str]:
    """The line with the ticks, and the numbers below it that do not touch."""
    ticks, numbers = [across] * columns, ""
    for value in axis.ticks:
        at, text = _place(axis.share(value), columns), axis.label(value)
        start = min(max(0, at - len(text) // 2), columns - len(text))
        if start >= (len(numbers) + 1 if numbers else 0):
            ticks[at] = below
            numbers = numbers.ljust(start) + text
    return "".join(ticks), numbers


def _cut(line: str, width: int) -> str:
    return line if cell_len(line) <= width else set_cell_size(line, width)


class _Canvas:
    """The area between the axes: ``columns`` x ``rows`` characters, in braille 2 x 4 dots each."""

    def __init__(self, columns: int, rows: int, x: _Axis, y: _Axis, unicode: bool) -> None:
        self._columns, self._rows, self._x, self._y, self._unicode = columns, rows, x, y, unicode
        self._dots_x, self._dots_y = (2, 4) if unicode else (1, 1)
        self._dots: set[tuple[int, int]] = set()
        self._marks: dict[tuple[int, int], str] = {}

    def draw(self, points: Points, number: int) -> str:
        """Draw series ``number``; what stands for it in the legend."""
        marks = _MARKS if self._unicode else _ASCII_MARKS
        mark = marks[number % len(marks)]
        if number or len(points) == 1:
            self._draw_marks(points, mark)
            return mark
        self._draw_line(points)
        return _LINE if self._unicode else mark

    def _draw_line(self, points: Points) -> None:
        """Join the points with straight lines."""
        wide, high = self._columns * self._dots_x, self._rows * self._dots_y
        places = [(_place(self._x.share(x), wide), _place(1 - self._y.share(y), high)) for x, y in points]
        self._dots.update(places)
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            steps = max(abs(x1 - x0), abs(y1 - y0))
            for n in range(1, steps):
                self._dots.add((x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps)))

    def _draw_marks(self, points: Points, mark: str) -> None:
        """A mark at each point; of many in one column, at their mean."""
        found: dict[int, list[float]] = {}
        for x, y in points:
            found.setdefault(_place(self._x.share(x), self._columns), []).append(y)
        for column, values in found.items():
            row = _place(1 - self._y.share(math.fsum(values) / len(values)), self._rows)
            self._marks[column, row] = mark

    def rows(self) -> list[str]:
        """What was drawn."""
        return [
            "".join(self._marks.get((c, r)) or self._cell(c, r) for c in range(self._columns))
            for r in range(self._rows)
        ]

    def _cell(self, column: int, row: int) -> str:
        if not self._unicode:
            return _ASCII_MARKS[0] if (column, row) in self._dots else " "
        bits = sum(
            bit
            for down, pair in enumerate(_DOTS)
            for right, bit in enumerate(pair)
            if (2 * column + right, 4 * row + down) in self._dots
        )
        return chr(0x2800 + bits) if bits else " "


def check_plot_path(path: Path) -> None:
    """Raise `UsageError` for a file that is neither SVG nor PNG, `Gpt2cliError` without matplotlib.

    For callers to ask before they work for hours.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"{path}: a plot is written as {' or '.join(PLOT_SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise _no_matplotlib()


def _no_matplotlib() -> Gpt2cliError:
    return Gpt2cliError(
        "a plot is drawn with matplotlib, which is not installed", hint="pip install 'gpt2cli[plot]'"
    )


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a file that has several."""

    series: Mapping[str, Points]
    title: str
    x_label: str
    y_label: str


def save_plot(path: Path, series: Mapping[str, Points], *, title: str, x_label: str, y_label: str) -> None:
    """Write the chart to an .svg or .png file, whole or not at all. The same input gives the same file.

    Raises `UsageError`, `Gpt2cliError`.
    """
    save_panels(path, [Panel(series, title, x_label, y_label)])


def save_panels(path: Path, panels: Sequence[Panel]) -> None:
    """As `save_plot`, with the charts one below the other."""
    check_plot_path(path)
    write_atomically(path, _render(path.suffix.lower().removeprefix("."), panels))


def _render(kind: str, panels: Sequence[Panel]) -> bytes:
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise _no_matplotlib() from None
    look = {
        "svg.hashsalt": "gpt2cli",
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    # A name may have characters that matplotlib's font has not: boxes, and no word about it.
    with style.context(["default", look]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(8, 4.5 * len(panels)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            _draw_panel(axes, panel)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw_panel(axes: Any, panel: Panel) -> None:
    lines = []
    for points in map(_finite, panel.series.values()):
        # Many points are a line; few are seen only with marks.
        mark = "o" if len(points) <= 40 else ""
        lines += axes.plot([x for x, _ in points], [y for _, y in points], marker=mark, markersize=4)
    axes.set_title(one_line(panel.title), parse_math=False)
    axes.set_xlabel(one_line(panel.x_label), parse_math=False)
    axes.set_ylabel(one_line(panel.y_label), parse_math=False)
    if lines:
        # The names are set afterwards: one that begins with "_" would be left out of the legend.
        legend = axes.legend(lines, [str(number) for number in range(len(lines))])
        for text, name in zip(legend.get_texts(), panel.series, strict=True):
            text.set_parse_math(False)
            text.set_text(one_line(name))
