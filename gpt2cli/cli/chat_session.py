"""The session that `chat` is asked to begin or to go on with."""

from __future__ import annotations

import time
from typing import Protocol

from gpt2cli.errors import UsageError
from gpt2cli.repl.sessions import Saved, Session, last_session, list_sessions
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

MAX_CHOICES = 20


class SessionFlags(Protocol):
    """The flags of `chat` that name a session."""

    @property
    def name(self) -> str | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def last(self) -> bool: ...
    @property
    def save(self) -> str | None: ...
    @property
    def no_save(self) -> bool: ...


def open_session(
    terminal: Terminal, flags: SessionFlags, *, interactive: bool
) -> tuple[Session | None, Saved | None]:
    """The session that the flags ask for, and what is in its file. Raises `UsageError`."""
    name, resumes = flags.name, flags.resume or flags.last
    if flags.resume and flags.last:
        raise UsageError("--resume and --last do not go together")
    if name is not None and not flags.resume:
        raise UsageError(f"what is {name!r}?", hint="--resume NAME goes on with a session")
    if flags.no_save and (resumes or flags.save):
        raise UsageError("--no-save does not go with --save, --resume and --last")
    if flags.save and resumes:
        raise UsageError("--save is for a new session; /save renames this one")
    if resumes:
        return Session.open(name or (last_session() if flags.last else _chosen(terminal)))
    if flags.save or (interactive and not flags.no_save):
        return Session(flags.save), None
    return None, None


def _chosen(terminal: Terminal) -> str:
    """The name of the session that the user chooses from a list. Raises `UsageError`."""
    last_session()
    sessions = list_sessions()[:MAX_CHOICES]
    if not (terminal.stdin_is_terminal and terminal.stderr_is_terminal):
        names = ", ".join(info.name for info in sessions[:5])
        raise UsageError("which session?", hint=f"--resume NAME; the newest: {names}")
    for number, info in enumerate(sessions, 1):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.modified))
        title = " ".join(info.title.split())
        terminal.write_stderr(_fitted(terminal, f"{number:3} {info.name}  {day}  {title}") + "\n")
    answer = terminal.ask_text("which one? [1]")
    if answer is None:
        raise UsageError("no session was chosen", hint="--resume NAME, or --last for the newest")
    answer = answer or "1"
    if answer.isdecimal() and 1 <= int(answer[:6]) <= len(sessions):
        return sessions[int(answer) - 1].name
    return answer


def _fitted(terminal: Terminal, line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return (indent + one_line(line))[: terminal.width - 1]
