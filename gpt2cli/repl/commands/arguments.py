"""What may stand after a command: for completion menus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2cli.errors import UsageError
from gpt2cli.hub.resolve import local_names
from gpt2cli.options import DRAFTS
from gpt2cli.repl.formats import FORMATS
from gpt2cli.repl.options import OPTION_NAMES
from gpt2cli.repl.sessions import list_sessions
from gpt2cli.repl.status import clipped
from gpt2cli.settings import KEYS
from gpt2cli.text.sanitize import one_line, sanitize

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat

SHOWN = 50
"""The most that a menu offers of what there can be any number of."""

_HELP = {
    "stop": "the answer ends before this text",
    "ignore_eos": "go on after an end-of-text token",
    "seed": "the same seed draws the same answer",
}
_FORMAT_HELP = {
    "story": "one text by turns",
    "transcript": "User: and Assistant:",
    "dialogpt": "turns closed by end-of-text",
    "template": "the model's own chat template",
    "raw": "your text and nothing else",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a menu; ``text`` takes the place of the last word."""

    text: str
    meta: str = ""


Complete = Callable[["Chat", str], Iterable[Item]]


def nothing(chat: Chat, argument: str) -> Iterator[Item]:
    """No completion."""
    return iter(())


def words(*allowed: str) -> Complete:
    """One of a few words."""
    return lambda chat, argument: [Item(word) for word in allowed if " " not in argument]


def options(chat: Chat, argument: str) -> Iterator[Item]:
    """``temperature=``, and the values of what is true or false."""
    word = argument.rpartition(" ")[2]
    if word.startswith("ignore_eos="):
        yield from (Item(f"ignore_eos={value}") for value in ("true", "false"))
        return
    for name in OPTION_NAMES:
        yield Item(f"{name}=", _help_of(name))


def settings(chat: Chat, argument: str) -> Iterator[Item]:
    """The options, and the keys of the prompt."""
    if argument.startswith("editing_mode="):
        yield from (Item(f"editing_mode={mode}") for mode in KEYS["editing_mode"].choices)
        return
    if argument.startswith("suggest="):
        yield from (Item(f"suggest={value}") for value in ("on", "off"))
        return
    if argument.startswith("draft="):
        yield from (Item(f"draft={name}") for name in (*DRAFTS, *local_names()))
        return
    yield from options(chat, argument)
    for name in ("draft", "editing_mode", "suggest"):
        yield Item(f"{name}=", KEYS[name].help)


def branch(chat: Chat, argument: str) -> Iterator[Item]:
    """How many, and the options."""
    if " " in argument:
        yield from options(chat, argument)
    else:
        yield from (Item(str(n), "answers") for n in (2, 3, 4))


def turns(chat: Chat, argument: str) -> Iterator[Item]:
    """The turns, the newest first."""
    if chat.loaded is None:
        return
    fitting = (turn for turn in reversed([*chat.loaded.tree]) if str(turn.id).startswith(argument))
    for _, turn in zip(range(SHOWN), fitting, strict=False):
        yield Item(str(turn.id), clipped(one_line(turn.user), 40))


def models(chat: Chat, argument: str) -> Iterator[Item]:
    """The models on this disk, or directories."""
    if argument.startswith((".", "/", "~")):
        yield from files(chat, argument, directories_only=True)
    else:
        yield from (Item(name) for name in local_names())


def formats(chat: Chat, argument: str) -> Iterator[Item]:
    """The formats."""
    yield from (Item(name, _FORMAT_HELP.get(name, "")) for name in FORMATS)


def sessions(chat: Chat, argument: str) -> Iterator[Item]:
    """The saved sessions, the newest first."""
    for _, session in zip(range(SHOWN), list_sessions(), strict=False):
        yield Item(session.name, clipped(one_line(session.title), 40))


def files(chat: Chat, argument: str, *, directories_only: bool = False) -> Iterator[Item]:
    """Files and folders; one that cannot be typed as it is is left out."""
    word = argument.rpartition(" ")[2]
    start = word.rpartition("/")[2]
    prefix = word[: len(word) - len(start)]
    try:
        entries = sorted(os.scandir(os.path.expanduser(prefix) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if hidden or entry.name != sanitize(entry.name) or " " in entry.name:
            continue
        if entry.is_dir():
            yield Item(f"{prefix}{entry.name}/")
        elif not directories_only:
            yield Item(f"{prefix}{entry.name}")


def split(argument: str) -> list[str]:
    """Words; quotes hold one together, a backslash is a backslash. Raises `UsageError`."""
    import shlex

    lexer = shlex.shlex(argument, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise UsageError("a quote is not closed") from None


def _help_of(name: str) -> str:
    return KEYS[name].help if name in KEYS else _HELP.get(name, "")
