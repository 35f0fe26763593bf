"""Drawing with rich: for stdout as it is, or as an SVG of the same screen.

What is drawn must be sanitised already: rich lets control characters through.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Literal

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

Theme = Literal["light", "dark"]

_ANSI = [(0, 0, 0), (170, 0, 0), (0, 120, 0), (150, 90, 0), (0, 60, 170), (140, 0, 140), (0, 120, 130)]
_ANSI.append((120, 120, 120))
_THEMES = {
    "light": TerminalTheme((255, 255, 255), (10, 10, 10), _ANSI),
    "dark": TerminalTheme((24, 26, 31), (222, 222, 222), _ANSI),
}
_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
MIN_WIDTH = 20
SVG_WIDTH = 80


class Canvas:
    """Draws for one stream: with its width, and the colours that it has."""

    def __init__(self, terminal: Terminal, *, on_screen: bool) -> None:
        self.width = max(MIN_WIDTH, terminal.width)
        self._screen = on_screen and terminal.stdout_is_terminal
        self._console = self._make(terminal) if self._screen and terminal.styled else None

    def _make(self, terminal: Terminal) -> Console:
        return Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system="auto",
            width=self.width,
            legacy_windows=False,
            _environ=dict(terminal.environ),
        )

    @property
    def colours(self) -> bool:
        """Whether there are enough colours to tell ten levels apart."""
        return self._console is not None and self._console.color_system in ("256", "truecolor")

    def draw(self, items: Iterable[RenderableType]) -> str:
        """``items``, one under the other, as text with the stream's own escape codes, or with none."""
        buffer = io.StringIO()
        console = self._console or Console(
            file=buffer, width=self.width, color_system=None, force_terminal=False, legacy_windows=False
        )
        console.file = buffer
        _print(console, items)
        lines = buffer.getvalue().splitlines()
        return "".join(f"{line.rstrip()}\n" for line in lines)


def draw_svg(items: Iterable[RenderableType], *, width: int, title: str, theme: Theme) -> str:
    """``items`` as an SVG of a window ``width`` cells wide. It refers to nothing outside itself."""
    from rich._export_format import CONSOLE_SVG_FORMAT

    console = Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, color_system="truecolor",
        legacy_windows=False, _environ={},
    )  # fmt: skip
    _print(console, items)
    # rich's own template fetches a font from the network, and XML has no U+FFFE and U+FFFF.
    svg = console.export_svg(
        title=one_line(title),
        theme=_THEMES[theme],
        code_format=_FONTS.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", "monospace"),
        unique_id="gpt2cli",
    )
    return svg.translate({0xFFFE: "\ufffd", 0xFFFF: "\ufffd"})


def _print(console: Console, items: Iterable[RenderableType]) -> None:
    for item in items:
        console.print(item, markup=False, highlight=False, emoji=False, overflow="fold")
