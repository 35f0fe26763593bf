"""A `gpt2cli.cli.completions.Command` as a completion script for each shell: Command -> str.

The scripts for bash, fish and PowerShell share one design: tables of what each command takes, and a
walk over the words before the cursor, in the way Typer reads them, that finds the command and the
place. zsh has both in its ``_arguments``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2cli.cli.shells import bash, fish, powershell, zsh

if TYPE_CHECKING:
    from gpt2cli.cli.completions import Command

SCRIPTS: dict[str, Callable[[Command], str]] = {
    "bash": bash.script,
    "zsh": zsh.script,
    "fish": fish.script,
    "powershell": powershell.script,
}
