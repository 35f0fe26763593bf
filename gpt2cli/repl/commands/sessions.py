"""Commands that save the turns, and bring them back: sessions and exports."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.files import write_atomically
from gpt2cli.repl.commands.arguments import split
from gpt2cli.repl.export import export as exported
from gpt2cli.repl.export import kind_of_file
from gpt2cli.repl.sessions import list_sessions
from gpt2cli.repl.status import clipped
from gpt2cli.terminal.table import aligned
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat

SESSIONS_SHOWN = 20


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


def list_all(chat: Chat, argument: str) -> None:
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
