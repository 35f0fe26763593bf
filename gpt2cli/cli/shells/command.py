"""A command line as the completion scripts need it: commands, their flags, and what stands where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "words", "file", "directory", "model"]


@dataclass(frozen=True, slots=True)
class Value:
    """What stands after a flag, or at a place of the command line.

    ``words`` are all that it can be, or what it can be besides a model.
    """

    name: str
    kind: Kind = "text"
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag under all its names, long ones first; ``value`` is None where it takes none."""

    names: tuple[str, ...]
    help: str
    value: Value | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """What stands at one place of the command line, or, ``repeated``, at that and all further ones."""

    value: Value
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command with all that it takes; ``path`` is how it is called, () for the program itself."""

    path: tuple[str, ...]
    help: str
    flags: tuple[Flag, ...]
    arguments: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()

    def walk(self) -> Iterator[Command]:
        """This command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()
