"""The Typer tree, and `main`: the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from gpt2cli import __version__
from gpt2cli.cli.default_command import with_command
from gpt2cli.cli.environment import prepare_environment
from gpt2cli.errors import Gpt2cliError, InvalidOption, ReaderGone, Signalled, UsageError
from gpt2cli.options import shown
from gpt2cli.settings import KEYS, Settings, environment_name, unknown_variables
from gpt2cli.terminal.streams import Terminal

PROGRAM = "gpt2cli"


def _print_version(ctx: typer.Context, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.obj.write(f"{PROGRAM} {__version__}\n")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", metavar="", callback=_print_version, is_eager=True, help="Show the version."
        ),
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            "-c",
            metavar="",
            help="Go on with the last text: gpt2cli generate --continue, which has more options.",
        ),
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        ctx.get_help()


EPILOG = """Start with: gpt2cli generate "Once upon a time"

or just: gpt2cli "Once upon a time" (a single word would be a command)
"""
COMMANDS = {
    "generate": ("generate", "generate", "EXAMPLES"),
    "chat": ("chat", "chat", "EXAMPLES"),
    "write": ("write", "write", "EXAMPLES"),
    "score": ("score", "score", "EXAMPLES"),
    "inspect": ("inspect", "inspect", "EXAMPLES"),
    "compare": ("compare", "compare", "EXAMPLES"),
    "features": ("features", "features", "EXAMPLES"),
    "pull": ("pull", "pull", "EXAMPLES"),
    "list": ("models", "list_models", "LIST_EXAMPLES"),
    "show": ("models", "show", "SHOW_EXAMPLES"),
    "rm": ("store", "rm", "RM_EXAMPLES"),
    "verify": ("verify", "verify", "EXAMPLES"),
    "import": ("store", "import_model", "IMPORT_EXAMPLES"),
    "export": ("store", "export", "EXPORT_EXAMPLES"),
    "gc": ("store", "gc", "GC_EXAMPLES"),
    "train": ("train", "train", "EXAMPLES"),
    "finetune": ("finetune", "finetune", "EXAMPLES"),
    "distill": ("distill", "distill", "EXAMPLES"),
    "logs": ("logs", "app", None),
    "replay": ("replay", "replay", "EXAMPLES"),
    "batch": ("batch", "batch", "EXAMPLES"),
    "serve": ("serve", "serve", "EXAMPLES"),
    "bench": ("bench", "bench", "EXAMPLES"),
    "preset": ("preset", "app", None),
    "config": ("config", "app", None),
    "completions": ("completions", "completions", "EXAMPLES"),
    "man": ("man", "man", "EXAMPLES"),
}
"""For each command, in the order of the help page: its module in `cli`, its function, and its examples."""


def command_tree(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The commands ``names``. Only their modules are imported: one command does not wait for twenty."""
    app = typer.Typer(
        name=PROGRAM,
        help="Run the GPT-2 family of language models in the terminal.",
        epilog=EPILOG,
        add_completion=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        module_name, function, examples = COMMANDS[name]
        module = importlib.import_module(f"gpt2cli.cli.{module_name}")
        if examples is None:
            app.add_typer(getattr(module, function), name=name)
        else:
            app.command(name, epilog=getattr(module, examples))(getattr(module, function))
    return app


def main(argv: Sequence[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run the command line ``argv`` (the process's own without one); the exit code.

    No error leaves this function: each becomes ``error: …`` on stderr, a ``hint: …`` where there is a
    next step, and one of the documented codes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminal = terminal or Terminal.of_process()
    debug = "--debug" in arguments
    prepare_environment()
    try:
        with warnings.catch_warnings(), terminal.signals:
            if not debug:
                warnings.simplefilter("ignore")
            _warn_of_variables(terminal, arguments)
            arguments = with_command(arguments, COMMANDS)
            first = arguments[0] if arguments else None
            wanted = () if first in ("--version", "-V") else COMMANDS
            app = command_tree([first] if first in COMMANDS else wanted)
            code = app(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=terminal)
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if debug:
            terminal.traceback(traceback.format_exc())
        return _report(terminal, error)


def _warn_of_variables(terminal: Terminal, arguments: Sequence[str]) -> None:
    """One line for variables that look like settings and are none; nothing where it is to be quiet."""
    unknown = unknown_variables(terminal.environ)
    if not unknown or {"-q", "--quiet"} & set(arguments):
        return
    with contextlib.suppress(UsageError):
        # What is wrong with the settings the command itself says.
        if Settings.load(terminal.environ).value("quiet"):
            return
    import difflib

    known = [environment_name(key) for key in KEYS]
    near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.75)
    more = f"; did you mean {near[0]}?" if near and len(unknown) == 1 else ""
    plural = "mean" if len(unknown) > 1 else "means"
    terminal.warn(f"{', '.join(unknown[:5])} in the environment {plural} nothing to {PROGRAM}{more}")


def _report(terminal: Terminal, error: BaseException) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, ReaderGone | Signalled):
        return error.exit_code
    if isinstance(error, InvalidOption):
        terminal.error(Gpt2cliError(f"--{error}"), error.hint)
        return error.exit_code
    if isinstance(error, Gpt2cliError):
        terminal.error(error, error.hint)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        terminal.error(Gpt2cliError(_refused_value(error) or error.format_message()), _usage_hint(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(error, SystemExit):
        # Typer exits by itself only when the reader of its help page is gone.
        return ReaderGone.exit_code
    if isinstance(error, MemoryError):
        terminal.error(Gpt2cliError("out of memory"), "try a smaller model or --precision int8")
        return 1
    if isinstance(error, OSError) and error.strerror:
        terminal.error(Gpt2cliError(f"{error.filename or 'input or output'}: {error.strerror}"))
        return 1
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    terminal.error(Gpt2cliError(message), "this is a defect of gpt2cli; --debug shows where")
    return 1


def _refused_value(error: typer.TyperException) -> str | None:
    """What is wrong with an option's value, in our words; None where Typer did not read it by pydantic."""
    errors = getattr(error.__cause__, "errors", None)
    if errors is None or not isinstance(error, typer.BadParameter):
        return None
    first = errors()[0]
    kind, value, limits = first["type"], shown(first["input"]), first.get("ctx", {})
    if kind.startswith(("int_", "float_", "bool_")):
        what = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        reason = f"{value} is not {what[kind.partition('_')[0]]}"
    elif kind in ("greater_than_equal", "less_than_equal"):
        less = kind == "greater_than_equal"
        reason = f"{value} is {'less' if less else 'more'} than {limits['ge' if less else 'le']}"
    else:
        reason = first["msg"].removeprefix("Value error, ").removesuffix(".")
    names = getattr(error.param, "opts", None) or [getattr(error.param, "human_readable_name", "a value")]
    return f"{max(names, key=len)}: {reason}"


def _usage_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else PROGRAM
    message = error.format_message()
    if path == PROGRAM and message.startswith("No such command") and "Did you mean" not in message:
        return f"see {PROGRAM} --help; a text stands in quotes, or after {PROGRAM} generate"
    return f"see {path} --help"
