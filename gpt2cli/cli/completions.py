"""``gpt2cli completions``."""

from typing import Annotated
import typer

EXAMPLES = ""


def completions(ctx: typer.Context, shell: Annotated[str, typer.Argument()]) -> None:
    """Print a completion script."""
