"""The session: a prompt, an answer, a prompt. Nothing but leaving ends it."""

from __future__ import annotations

import os

from gpt2cli.errors import Signalled
from gpt2cli.repl.chat import Cancelled, Chat, Start
from gpt2cli.repl.commands.table import CommandCompleter, Leave, run_command
from gpt2cli.repl.prompt import message_of
from gpt2cli.repl.status import short_name
from gpt2cli.repl.tty import Tty
from gpt2cli.terminal.streams import Terminal, flush_standard_streams

HOW_TO_LEAVE = "Ctrl-D or /exit leaves; Ctrl-C stops an answer"
SHOWN_ON_RETURN = 3
"""How many of the last turns are shown of a session that goes on."""


def run_session(terminal: Terminal, start: Start) -> None:
    """Chat on the terminal of this process until the user leaves; the terminal is as before afterwards.

    Raises `Terminated`, and what loading the model raised.
    """
    with Tty(terminal) as tty:
        chat = Chat(terminal, start, tty, CommandCompleter)
        code = 0
        try:
            _loop(chat)
        except Signalled as signalled:
            code = signalled.exit_code
            raise
        except BaseException:
            chat.join()
            raise
        finally:
            chat.rest()
            if chat.loaded is not None:
                chat.loaded.close()
            if chat.is_loading():
                # A thread that links a library when the interpreter ends takes the process down with it.
                tty.__exit__(None, None, None)
                flush_standard_streams()
                os._exit(code)


def _loop(chat: Chat) -> None:
    """Prompt after prompt. Raises `Terminated`, and what loading the model raised."""
    _greet(chat)
    while True:
        try:
            text = chat.read()
        except KeyboardInterrupt:
            if chat.prompt.left_empty:
                chat.view.note(HOW_TO_LEAVE)
            continue
        except EOFError:
            return
        try:
            _take(chat, text)
        except Leave:
            return


def _greet(chat: Chat) -> None:
    start, view = chat.start, chat.view
    name = short_name(start.model)
    if start.resumed is None:
        if chat.terminal.quiet:
            return
        view.note(f"{name} continues what you write · /help shows the commands, Ctrl-D leaves")
        return
    view.note(f"session {start.resumed} goes on with {name} · /help shows the commands")
    chat.show_turns(start.turns[-SHOWN_ON_RETURN:])


def _take(chat: Chat, text: str) -> None:
    """Do what was typed; whatever goes wrong is told, and the session goes on."""
    try:
        if not run_command(chat, text):
            chat.say(message_of(text))
    except Cancelled:
        chat.draft = text
    except (Leave, Signalled):
        raise
    except Exception as error:
        if chat.has_failed(error):
            raise
        chat.view.error(error)
