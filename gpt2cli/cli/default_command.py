"""A command line without a command: a first argument that is a text is continued."""

from __future__ import annotations

from collections.abc import Collection, Sequence

DEFAULT = "generate"
GO_ON = ("-c", "--continue")


def with_command(arguments: Sequence[str], commands: Collection[str]) -> list[str]:
    """``arguments`` with the command that a text in the first place stands for.

    A text is what has white space in it and begins with no ``-``: ``gpt2cli "Once upon a time" --greedy`` is
    ``gpt2cli generate "Once upon a time" --greedy``. A single word never is, so that a command which was
    misspelt (``gpt2cli generat``) is an error and not a prompt. `GO_ON` in the first place is an option of
    ``generate``, too.
    """
    given = list(arguments)
    if given and given[0] in GO_ON:
        return [DEFAULT, *given]
    if given and is_text(given[0]) and given[0] not in commands:
        return [DEFAULT, *given]
    return given


def is_text(argument: str) -> bool:
    """Whether an argument in the place of a command is a text to continue."""
    return not argument.startswith("-") and bool(argument.strip()) and any(map(str.isspace, argument))
