"""``gpt2cli pull``: bring models from the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from gpt2cli.adapter import is_adapter
from gpt2cli.cli import params
from gpt2cli.cli.conversion import convert_for_auto
from gpt2cli.cli.flags import read_settings
from gpt2cli.cli.pulling import is_offline, pull_model
from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.hub.registry import ModelName, parse_name, parse_revision
from gpt2cli.hub.resolve import resolve
from gpt2cli.settings import Settings, set_in_file
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal

EXAMPLES = """Examples:

  gpt2cli pull gpt2

  gpt2cli pull distilgpt2 gpt2-medium

  gpt2cli pull openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e
"""


def pull(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@REVISION]...",
            help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or owner/name on the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    revision: params.Revision = None,
    allow_pickle: params.ConvertPickle = False,
    offline: params.Offline = None,
    jsonl: params.Events = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Download models and adapters from the Hugging Face Hub into the store; what was cut off is resumed."""
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, quiet)
    wanted = [_parse(text, revision) for text in models]
    if revision is not None and len(models) > 1:
        raise UsageError("--revision goes with one model", hint="write NAME@REVISION for each")
    without_network = is_offline(terminal, settings, offline)
    if jsonl:
        terminal.check_stdout()
    for name, at in wanted:
        if without_network:
            _say_present(terminal, name, at, jsonl=jsonl)
        else:
            pulled = pull_model(terminal, name, at, settings=settings, allow_pickle=allow_pickle, jsonl=jsonl)
            if not is_adapter(pulled.model.directory):
                convert_for_auto(terminal, pulled.model)
                _make_default(terminal, name)


def _parse(text: str, revision: str | None) -> tuple[ModelName, str | None]:
    name, at, own = text.partition("@")
    if at and revision is not None:
        raise UsageError(f"{text}: --revision and @REVISION do not go together")
    wanted = own if at else revision
    return parse_name(name), None if wanted is None else parse_revision(wanted)


def _say_present(terminal: Terminal, name: ModelName, revision: str | None, *, jsonl: bool) -> None:
    """Offline, a pull only finds what is there. Raises `Unavailable`."""
    found = resolve(name.given, revision=revision, offline=True)
    if jsonl:
        terminal.write(
            json_line(
                {
                    "event": "end",
                    "model": name.repository,
                    "commit": found.revision,
                    "directory": str(found.directory),
                    "present": True,
                }
            )
        )
    else:
        terminal.note(f"{name.given} is on this disk (offline: not compared with the Hub)")


def _make_default(terminal: Terminal, name: ModelName) -> None:
    """The first model that the user pulls is the one used without -m."""
    if Settings.load(terminal.environ).get("model") is not None:
        return
    try:
        set_in_file("model", name.given)
    except Gpt2cliError as error:
        terminal.warn(f"{name.given} could not be made the default model: {error}")
        return
    terminal.note(f"{name.given} is now the model used without -m (gpt2cli config set model changes it)")
