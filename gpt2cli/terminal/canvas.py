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
    """Draws for stdout: in colours where it is a terminal of 256 colours or more, else as plain text.

    Sixteen colours are not enough to tell ten levels apart, and are whatever the user's theme makes of them.
    """

    def __init__(self, terminal: Terminal, *, on_screen: bool) -> None:
        self.width = max(MIN_WIDTH, terminal.width)
        self._environ = dict(terminal.environ)
        self._system: Literal["256", "truecolor"] | None = None
        if on_screen and terminal.stdout_is_terminal and terminal.styled:
            found = Console(file=io.StringIO(), force_terminal=True, _environ=self._environ).color_system
            self._system = "truecolor" if found == "truecolor" else "256" if found == "256" else None

    @property
    def colours(self) -> bool:
        """Whether anything is coloured at all."""
        return self._system is not None

    def draw(self, items: Iterable[RenderableType]) -> str:
        """``items``, one under the other, as text with the terminal's own escape codes, or with none."""
        buffer = io.StringIO()
        console = Console(
            file=buffer,
            width=self.width,
            color_system=self._system,
            force_terminal=self.colours,
            legacy_windows=False,
            _environ={},
        )
        _print(console, items)
        return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().split("\n")[:-1])


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
