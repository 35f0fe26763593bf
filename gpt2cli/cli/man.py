"""``gpt2cli man``: the manual page, wherever it was installed."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import typer

import gpt2cli
from gpt2cli.cli import params
from gpt2cli.errors import Gpt2cliError
from gpt2cli.terminal.manual import plain_page
from gpt2cli.terminal.streams import Terminal

EXAMPLES = """Examples:

  gpt2cli man

  gpt2cli man > gpt2cli.1
"""
PAGE = "gpt2cli.1"


def man(ctx: typer.Context, debug: params.Debug = False) -> None:
    """Show the manual page: by man on a terminal that has it, else as text; in a pipe its source."""
    terminal: Terminal = ctx.obj
    page = find_page()
    try:
        roff = page.read_text("utf-8")
    except OSError as error:
        raise Gpt2cliError(f"cannot read {page}: {error.strerror or error}") from None
    if not terminal.stdout_is_terminal:
        terminal.write(roff)
    elif not _shown_by_man(terminal, page):
        terminal.write(plain_page(roff, terminal.width))


def find_page() -> Path:
    """Where the page lies: among the files of the installation, or in the tree of the sources.

    Raises `Gpt2cliError` where there is none.
    """
    source = Path(gpt2cli.__file__).resolve().parents[1] / "docs" / PAGE
    if source.is_file():
        return source
    try:
        files = metadata.files("gpt2cli") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == PAGE and (found := Path(str(file.locate())).resolve()).is_file():
            return found
    raise Gpt2cliError("the manual page is not installed", hint="gpt2cli COMMAND --help says the same")


def _shown_by_man(terminal: Terminal, page: Path) -> bool:
    """Whether man was there, and has shown the page."""
    program = shutil.which("man", path=terminal.environ.get("PATH"))
    if program is None:
        return False
    # Ctrl-C is for the pager.
    terminal.signals.soften(lambda: None)
    try:
        # An argument with a slash is a file, for every man.
        return subprocess.run([program, str(page)], check=False).returncode == 0
    except OSError:
        return False
    finally:
        terminal.signals.soften(None)
