"""Commands that settle how answers are drawn, and where they are kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.hub.resolve import local_names
from gpt2cli.repl.arguments import split
from gpt2cli.repl.export import export as exported
from gpt2cli.repl.export import kind_of_file
from gpt2cli.repl.formats import FORMATS
from gpt2cli.repl.loader import Loader
from gpt2cli.repl.sessions import list_sessions
from gpt2cli.repl.status import clipped, short_name
from gpt2cli.settings import parse_value
from gpt2cli.terminal.table import aligned
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat

SESSIONS_SHOWN = 20


def set_option(chat: Chat, argument: str) -> None:
    """``/set NAME=VALUE``, or ``NAME VALUE``."""
    name, equals, value = argument.partition("=")
    if not equals:
        name, _, value = argument.partition(" ")
    name, value = name.strip(), value.strip()
    if not name or not value:
        raise UsageError("/set takes NAME=VALUE, as in /set temperature=0.8", hint="/show lists the options")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    if name.lower().replace("-", "_") == "editing_mode":
        chat.editing_mode = str(parse_value("editing_mode", value))
        chat.prompt.set_editing_mode(chat.editing_mode)
        return
    chat.conversation.set_option(name, value)


def seed(chat: Chat, argument: str) -> None:
    """``/seed``."""
    if argument == "random":
        chat.view.note(f"seed {chat.conversation.set_seed(None)}")
    elif argument:
        chat.conversation.set_option("seed", argument)
    else:
        chat.view.note(
            f"seed {chat.conversation.seed}: the same seed, options and turns give the same answers"
        )


def model(chat: Chat, argument: str) -> None:
    """``/model``: the present one and those on this disk, or another."""
    conversation, view = chat.conversation, chat.view
    if not argument:
        config, name = conversation.engine.config, short_name(conversation.model)
        view.text(
            f"{name}: {config.n_layer} layers, {config.n_embd} wide, context {config.n_positions} tokens"
        )
        view.note("on this disk: " + ", ".join(local_names()))
        return
    loader = Loader(lambda: chat.start.load_engine(argument))
    what, otherwise = f"loading {one_line(argument)[:40]}", f"{short_name(conversation.model)} stays"
    engine, name, revision = chat.wait_for(loader, what, otherwise)
    before = conversation.format.name
    conversation.set_model(engine, name, revision)
    changed = f", format {conversation.format.name}" if conversation.format.name != before else ""
    view.note(f"{short_name(name)} goes on{changed}")


def format(chat: Chat, argument: str) -> None:
    """``/format``."""
    if argument:
        chat.conversation.set_format(argument)
    else:
        chat.view.note(f"format {chat.conversation.format.name}; there are {', '.join(FORMATS)}")


def system(chat: Chat, argument: str) -> None:
    """``/system``: shown, replaced, removed."""
    conversation = chat.conversation
    if argument == "-":
        conversation.set_system("")
    elif argument:
        conversation.set_system(argument)
    elif conversation.system:
        chat.view.text(conversation.system)
    else:
        chat.view.note("no system text; /system TEXT sets one")


def save(chat: Chat, argument: str) -> None:
    """``/save``."""
    if not argument:
        raise UsageError("/save takes a name", hint="/save my-story")
    chat.conversation.save(argument)
    chat.view.note(f"saved as {one_line(argument)}; gpt2cli chat --resume {one_line(argument)} goes on")


def load(chat: Chat, argument: str) -> None:
    """``/load``."""
    if not argument:
        raise UsageError("/load takes the name of a session", hint="/sessions lists them")
    chat.conversation.load(argument)
    chat.view.note(f"session {one_line(argument)} goes on")
    chat.show_turns(chat.conversation.tree.path()[-1:])


def sessions(chat: Chat, argument: str) -> None:
    """``/sessions``: the newest."""
    found = list_sessions()
    if not found:
        chat.view.note("no sessions yet")
        return
    rows = [
        (session.name, time.strftime("%Y-%m-%d %H:%M", time.localtime(session.modified)), session.title)
        for session in found[:SESSIONS_SHOWN]
    ]
    width = chat.view.width
    chat.view.lines(clipped(line, width) for line in aligned(("name", "changed", "begins"), rows))
    if len(found) > SESSIONS_SHOWN:
        chat.view.note(f"and {len(found) - SESSIONS_SHOWN} older ones")


def export(chat: Chat, argument: str) -> None:
    """``/export FILE``."""
    words = split(argument)
    if len(words) != 1:
        raise UsageError("/export takes one file", hint="/export story.md, story.json or story.txt")
    path = Path(os.path.expanduser(words[0]))
    conversation = chat.conversation
    if conversation.tree.current is None:
        raise UsageError("there are no turns to export")
    if path.exists() and chat.prompt.ask(f"replace {one_line(str(path))}? [y/N] ").strip().lower() not in (
        "y",
        "yes",
    ):
        chat.view.note("nothing is written")
        return
    try:
        write_atomically(path, exported(conversation, kind_of_file(path.name)))
    except OSError as error:
        raise Gpt2cliError(f"cannot write {path}: {error.strerror or error}") from None
    chat.view.note(f"{path} is written")
