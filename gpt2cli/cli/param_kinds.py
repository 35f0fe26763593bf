"""How an option that commands share is written: its panel on the help page, and where its default stands."""

from __future__ import annotations

from dataclasses import fields

import typer

from gpt2cli.options import DEFAULT_MAX_NEW_TOKENS, GenerateOptions, LoadOptions

MODEL, LENGTH, SAMPLING, TEXT = "Model", "Length", "Sampling", "Text"
PRESET = "Preset"
TEXTS, OUTPUT, ENGINE, SERVER = "Texts", "Output", "Engine", "Model on a server"

_DEFAULTS = {field.name: field.default for field in (*fields(GenerateOptions), *fields(LoadOptions))}
_DEFAULTS["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS


def option(
    panel: str, *names: str, help: str, metavar: str | None = None, default_of: str | None = None
) -> typer.models.OptionInfo:
    """An option whose default stands in `gpt2cli.options`, under the field ``default_of``."""
    if default_of is not None:
        help = f"{help} Default: {shown_default(_DEFAULTS[default_of])}."
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return info


def shown_default(default: object) -> str:
    """``default`` as a help page has it."""
    return f"{default:g}" if isinstance(default, float) else str(default)


def flag(panel: str, *names: str, help: str) -> typer.models.OptionInfo:
    """An option without a value."""
    return option(panel, *names, help=help, metavar="")
