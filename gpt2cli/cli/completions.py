"""``gpt2cli completions``: the scripts that make a shell complete our command line.

The scripts are static, made from the Typer tree: a Tab starts no Python, but where the names of the
models on disk are wanted. The tree is first read into a `Command`; `gpt2cli.cli.shells` writes that out
for each shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from gpt2cli.cli.shells import bash, fish, powershell, zsh
from gpt2cli.cli.shells.command import Argument, Command, Flag, Value
from gpt2cli.errors import UsageError
from gpt2cli.hub.resolve import local_names
from gpt2cli.options import DRAFTS
from gpt2cli.presets.store import builtin_names
from gpt2cli.settings import KEYS
from gpt2cli.terminal.streams import Terminal

Shell = Literal["bash", "zsh", "fish", "powershell"]

# What the type of a parameter does not tell, its name does, in every command.
_MODEL_PARAMETERS = frozenset({"model", "models", "draft"})
_WORDS_OF_PARAMETER = {"key": tuple(KEYS), "draft": DRAFTS, "preset": tuple(builtin_names())}

SCRIPTS: dict[Shell, Callable[[Command], str]] = {
    "bash": bash.script,
    "zsh": zsh.script,
    "fish": fish.script,
    "powershell": powershell.script,
}

EXAMPLES = """Write the script to a file, have the shell read it, and open a new shell.

bash:

  gpt2cli completions bash > ~/.gpt2cli.bash

  echo '. ~/.gpt2cli.bash' >> ~/.bashrc

zsh:

  mkdir -p ~/.zfunc && gpt2cli completions zsh > ~/.zfunc/_gpt2cli

  and in ~/.zshrc, before compinit: fpath=(~/.zfunc $fpath)

fish:

  gpt2cli completions fish > ~/.config/fish/completions/gpt2cli.fish

PowerShell:

  gpt2cli completions powershell > $HOME/gpt2cli.ps1

  and in the file that $PROFILE names: . $HOME/gpt2cli.ps1

To try it in a running bash or zsh:

  source <(gpt2cli completions bash)
"""


def read_command(command: Any, path: tuple[str, ...] = (), parent: typer.Context | None = None) -> Command:
    """The `Command` of a command in a Typer tree (`typer.main.get_command`); hidden things are left out."""
    context = typer.Context(command, parent=parent, **command.context_settings)
    parameters = [p for p in command.get_params(context) if not p.hidden]
    below = getattr(command, "commands", {})
    return Command(
        path,
        _short(command.short_help or command.help),
        flags=tuple(flag for p in parameters if p.param_type_name == "option" for flag in _flags(p)),
        arguments=tuple(arg for p in parameters if p.param_type_name == "argument" for arg in _arguments(p)),
        commands=tuple(
            read_command(child, (*path, name), context) for name, child in below.items() if not child.hidden
        ),
    )


def _flags(option: Any) -> Iterator[Flag]:
    """The flag of an option, and a second one of ``--this/--no-this``."""
    takes_value = not (option.is_flag or option.count)
    if takes_value and option.nargs != 1:
        raise ValueError(f"{option.name}: the scripts know only flags of one value")
    for names in filter(None, (option.opts, option.secondary_opts)):
        yield Flag(
            # The names of the help flag come from a set: only sorted are they the same each time.
            tuple(sorted(names, key=lambda name: not name.startswith("--"))),
            _short(option.help),
            _value(option) if takes_value else None,
            repeated=option.multiple or option.count,
        )


def _arguments(argument: Any) -> Iterator[Argument]:
    for _ in range(max(1, argument.nargs)):
        yield Argument(_value(argument), repeated=argument.nargs < 0)


def _value(parameter: Any) -> Value:
    descriptor = parameter.type_descriptor
    name = (parameter.metavar or parameter.name.upper()).removesuffix("...").strip("[]")
    if parameter.name in _MODEL_PARAMETERS:
        return Value(name, "model", _WORDS_OF_PARAMETER.get(parameter.name, ()))
    if words := _WORDS_OF_PARAMETER.get(parameter.name):
        return Value(name, "words", words)
    if descriptor.is_choice:
        return Value(name, "words", tuple(str(getattr(c, "value", c)) for c in descriptor.choices))
    if descriptor.is_path or descriptor.is_file or Path in get_args(descriptor.annotation):
        return Value(name, "directory" if descriptor.path_type == "dir" else "file")
    return Value(name)


def _short(help: str | None) -> str:
    """The first sentence of a help text, on one line."""
    line = " ".join((help or "").split("\f")[0].split("\n\n")[0].split())
    return re.split(r"\.(?: |$)", line, maxsplit=1)[0]


def completions(
    ctx: typer.Context,
    shell: Annotated[
        Shell | None,
        typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell.", show_default=False),
    ] = None,
    models: Annotated[
        bool, typer.Option("--models", hidden=True, help="Print the names of the models on disk.")
    ] = False,
) -> None:
    """Print the script that makes a shell complete commands, flags, model names and files."""
    terminal: Terminal = ctx.obj
    if models:
        terminal.write("".join(f"{name}\n" for name in local_names()))
        return
    if shell is None:
        raise UsageError("for which shell?", hint=f"gpt2cli completions {'|'.join(get_args(Shell))}")
    # This command runs alone; the script is of all of them.
    from gpt2cli.cli.app import command_tree

    terminal.write(SCRIPTS[shell](read_command(typer.main.get_command(command_tree()))))
