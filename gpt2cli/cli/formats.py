"""The formats of what is put out: from a flag, or from the name of the output file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli.cli.flags import output_file
from gpt2cli.errors import UsageError
from gpt2cli.files import write_atomically
from gpt2cli.terminal.streams import Terminal

Format = Literal["text", "json", "jsonl", "csv", "svg", "html"]

_FLAGS: tuple[Format, ...] = ("json", "jsonl", "csv", "svg", "html")
_SUFFIXES: dict[str, Format] = {f".{name}": name for name in _FLAGS} | {".htm": "html"}


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What is put out, and where."""

    json: bool
    jsonl: bool
    csv: bool
    svg: bool
    html: bool
    theme: Literal["light", "dark"] | None
    output: Path | None


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


def read_output(terminal: Terminal, flags: OutputFlags) -> Output:
    """What the flags ask for; without one, the suffix of ``--output`` decides. Raises `UsageError`."""
    named = [name for name in _FLAGS if getattr(flags, name)]
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]} do not go together")
    file = output_file(terminal, flags.output)
    kind = named[0] if named else format_of(file)
    if flags.theme and kind != "svg":
        raise UsageError("--theme is for an SVG; a page follows the browser, a terminal is as it is")
    return Output(terminal, kind, file, flags.theme or "light")
