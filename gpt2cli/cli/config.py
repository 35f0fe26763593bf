"""``gpt2cli config``: what is set, and where."""

from __future__ import annotations

from typing import Annotated

import typer

from gpt2cli import paths
from gpt2cli.settings import KEYS, Settings, known_key, parse_value, set_in_file, unset_in_file
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

EXAMPLES = """Examples:

  gpt2cli config set temperature 0.8

  gpt2cli config get model

  gpt2cli config list
"""

app = typer.Typer(
    help="List, get, set and unset settings. A flag overrides GPT2CLI_<KEY>, which overrides config.toml.",
    epilog=EXAMPLES,
    invoke_without_command=True,
)

KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help=f"One of: {', '.join(KEYS)}.", show_default=False)
]


@app.callback()
def root(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        ctx.get_help()


@app.command("list")
def list_settings(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List every setting with its value, and where the value comes from."""
    terminal: Terminal = ctx.obj
    settings = Settings.load(terminal.environ)
    found = {key: settings.get(key) for key in KEYS}
    if json:
        document = {k: {"value": s.value, "source": s.source} if s else None for k, s in found.items()}
        terminal.write(json_line(document))
        return
    rows = [(k, _shown(s.value) if s else "", s.source if s else "", KEYS[k].help) for k, s in found.items()]
    if not terminal.stdout_is_terminal:
        terminal.write("".join("\t".join(row[:3]) + "\n" for row in rows))
        return
    name_width = max(len(row[0]) for row in rows)
    value_width = max(6, *(len(row[1]) for row in rows))
    for name, value, source, meaning in rows:
        comment = terminal.dim(f"{meaning} ({source})" if source else meaning)
        terminal.write(f"{name:<{name_width}}  {value or '-':<{value_width}}  {comment}\n")


@app.command("get")
def get_setting(ctx: typer.Context, key: KeyName) -> None:
    """Print one value; nothing when it is not set."""
    value = Settings.load(ctx.obj.environ).value(known_key(key))
    if value is not None:
        ctx.obj.write(_shown(value) + "\n")


# A negative number is a value here, not a flag.
@app.command("set", context_settings={"ignore_unknown_options": True})
def set_setting(
    ctx: typer.Context,
    key: KeyName,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The new value.", show_default=False)],
) -> None:
    """Write one value into config.toml."""
    name = known_key(key)
    set_in_file(name, parse_value(name, value))


@app.command("unset")
def unset_setting(ctx: typer.Context, key: KeyName) -> None:
    """Remove one value from config.toml."""
    name = known_key(key)
    if not unset_in_file(name):
        ctx.obj.note(f"{name} was not set")


@app.command("path")
def config_path(ctx: typer.Context) -> None:
    """Print where config.toml is."""
    ctx.obj.write(f"{paths.config_file()}\n")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return one_line(str(value))
