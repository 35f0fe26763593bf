"""The formats of what is put out: from a flag, or from the name of the output file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable, write_atomically
from gpt2cli.terminal.streams import Terminal

Format = Literal["text", "json", "jsonl", "csv", "svg", "html"]

_FLAGS: tuple[Format, ...] = ("json", "jsonl", "csv", "svg", "html")
_SUFFIXES: dict[str, Format] = {f".{name}": name for name in _FLAGS} | {".htm": "html"}


@dataclass(frozen=True, slots=True)
class Output:
    """Where the result goes, and as what."""

    terminal: Terminal
    format: Format
    file: Path | None
    theme: Literal["light", "dark"] = "light"

    @property
    def on_screen(self) -> bool:
        """Whether a person reads it as text on a terminal."""
        return self.format == "text" and self.file is None and self.terminal.stdout_is_terminal

    def write(self, content: str) -> None:
        """Put out the whole result."""
        if self.file is None:
            self.terminal.write(content)
        else:
            write_atomically(self.file, content)


def format_of(file: Path | None) -> Format:
    """The format that a file's suffix names; text where it names none."""
    return "text" if file is None else _SUFFIXES.get(file.suffix.lower(), "text")


def read_output(terminal: Terminal, flags: Mapping[str, Any]) -> Output:
    """What the flags ask for; without one, the suffix of ``--output`` decides. Raises `UsageError`."""
    named = [name for name in _FLAGS if flags.get(name)]
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]} do not go together")
    file = flags["output"]
    file = None if file is None or str(file) == "-" else file
    if file is None:
        terminal.check_stdout()
    else:
        check_writable(file)
    kind = named[0] if named else format_of(file)
    if flags["theme"] and kind != "svg":
        raise UsageError("--theme is for an SVG; a page follows the browser, a terminal is as it is")
    return Output(terminal, kind, file, flags["theme"] or "light")
