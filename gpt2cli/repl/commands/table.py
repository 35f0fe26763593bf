"""The commands of a session: one table, each with its help and the completion of its argument."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from gpt2cli.errors import Gpt2cliError, UsageError
from gpt2cli.repl.commands import arguments, inspect, sessions, settings, turns
from gpt2cli.repl.commands.arguments import Item
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: ``usage`` is its argument, ``help`` a few words, ``details`` the rest."""

    name: str
    usage: str
    help: str
    run: Callable[[Chat, str], None]
    complete: Callable[[Chat, str], Iterable[Item]] = arguments.nothing
    details: str = ""

    @property
    def typed(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.usage}".rstrip()


def _leave(chat: Chat, argument: str) -> None:
    raise Leave


def _help(chat: Chat, argument: str) -> None:
    if argument:
        command = find(argument.lstrip("/"))
        chat.view.lines([command.typed], "1")
        chat.view.text(command.help[0].upper() + command.help[1:] + ".")
        if command.details:
            chat.view.note(command.details)
        return
    chat.view.rows_of_two([(command.typed, command.help) for command in COMMANDS.values()])
    chat.view.rows(KEYS, gap=3)
    chat.view.note(ABOUT)


def _command_names(chat: Chat, argument: str) -> Iterator[Item]:
    for command in COMMANDS.values():
        yield Item(command.name, command.help)


_TABLE = (
    Command("help", "[COMMAND]", "this, or one command", _help, _command_names),
    Command("exit", "", "leave (Ctrl-D)", _leave, details="The session is saved as it goes."),
    Command(
        "regen",
        "[K=V…]",
        "draw the answer again",
        turns.regen,
        arguments.options,
        "K=V: with other options for this one draw, as in /regen temperature=1.2 seed=5. "
        "The old answer stays in the tree.",
    ),
    Command(
        "continue",
        "[K=V…]",
        "go on with the answer",
        turns.go_on,
        arguments.options,
        "As if it had not been cut off; with the same seed it is the same text.",
    ),
    Command(
        "branch",
        "N [K=V…]",
        "N answers; take one",
        turns.branch,
        arguments.branch,
        "Draws N other answers in one batch, shows them side by side, and asks which one to take. "
        "The others stay in the tree.",
    ),
    Command("undo", "", "back one turn", turns.undo, details="/redo comes back to it."),
    Command("redo", "", "forward again", turns.redo),
    Command(
        "tree",
        "",
        "draw all turns",
        turns.tree,
        details="Each turn has a number for /go; * is where you stand, + an answer that goes on.",
    ),
    Command("go", "TURN", "walk to a turn", turns.go, arguments.turns, "/tree shows the numbers."),
    Command(
        "clear",
        "",
        "begin a new text",
        turns.clear,
        details="The turns so far stay in the tree; /go TURN comes back to them.",
    ),
    Command(
        "edit",
        "[TEXT]",
        "write in $EDITOR",
        turns.edit,
        details="What is saved there stands at the prompt; Enter sends it. "
        "Ctrl-X Ctrl-E edits what is typed, and sends it.",
    ),
    Command(
        "context",
        "[ids]",
        "what the model sees",
        inspect.context,
        arguments.words("ids"),
        "Exactly the text, and with ids the tokens, that stand before your next message.",
    ),
    Command(
        "tokens",
        "[list]",
        "how sure it was",
        inspect.tokens,
        arguments.words("list"),
        "The last answer coloured by the probability of each token before any filter; list: a line a token.",
    ),
    Command("stats", "", "figures of the answer", inspect.stats),
    Command(
        "set",
        "NAME=VALUE",
        "change an option",
        settings.set_option,
        arguments.settings,
        "VALUE default is the model's own. /show lists the options. draft=MODEL has a smaller model guess "
        "ahead: the same text, sooner. suggest=on shows, dim, what the model would type next. "
        "editing_mode=vi is for this session; for all: gpt2cli config set editing_mode vi.",
    ),
    Command("show", "", "the options", inspect.show),
    Command("seed", "[N|random]", "the session's seed", settings.seed, arguments.words("random")),
    Command(
        "model",
        "[NAME]",
        "use another model",
        settings.model,
        arguments.models,
        "The turns stay. Only models on this disk; gpt2cli pull brings others.",
    ),
    Command(
        "format",
        "[NAME]",
        "how turns are joined",
        settings.format,
        arguments.formats,
        "story: you and the model write one text by turns. transcript: User: and Assistant: before each "
        "turn. dialogpt: turns closed by end-of-text. template: the model's own chat template. "
        "raw: your text and nothing else.",
    ),
    Command(
        "system",
        "[TEXT|-]",
        "the text on top",
        settings.system,
        details="Base models take it as the beginning of the text, not as an order. - removes it.",
    ),
    Command(
        "save", "NAME", "name this session", sessions.save, details="gpt2cli chat --resume NAME goes on."
    ),
    Command("load", "NAME", "go on with a session", sessions.load, arguments.sessions),
    Command("sessions", "", "list the sessions", sessions.list_all),
    Command(
        "export",
        "FILE",
        "write all to a file",
        sessions.export,
        arguments.files,
        "FILE.md is Markdown, FILE.json JSON with the whole tree, any other plain text.",
    ),
)

COMMANDS = {command.name: command for command in _TABLE}
ALIASES = {"quit": "exit", "q": "exit", "?": "help", "h": "help"}

KEYS = (
    ("Enter", 'sends; Alt+Enter, \\ at the end or """ … """: more lines'),
    ("Ctrl-C", "stops an answer and keeps its text; Ctrl-D leaves"),
    ("Tab →", "complete; take what is suggested; Ctrl-R searches what was typed"),
    ("//x", "sends the text /x"),
)
ABOUT = (
    "A base model continues text: it was never taught to answer. Begin what you want it to go on with, "
    "or try /format transcript."
)

_COMMAND = re.compile(r"/([^\s/]*)(?:\s+(.*))?", re.DOTALL)


def find(name: str) -> Command:
    """The command of that name. Raises `UsageError` with the nearest one."""
    known = COMMANDS.get(ALIASES.get(name.lower(), name.lower()))
    if known is not None:
        return known
    near = difflib.get_close_matches(name.lower(), [*COMMANDS, *ALIASES], n=1, cutoff=0.5)
    starts = [other for other in COMMANDS if name and other.startswith(name.lower())]
    nearest = starts[0] if starts else ALIASES.get(near[0], near[0]) if near else None
    hint = f"did you mean /{nearest}?" if nearest else "/help lists the commands"
    raise UsageError(
        f"there is no command /{one_line(name)[:40]}", hint=f"{hint} (//… sends a text that begins with /)"
    )


def run_command(chat: Chat, text: str) -> bool:
    """Run ``text`` if it is a command; else it is a message, and false. Raises `Gpt2cliError`, `Leave`.

    Text of several lines is a message.
    """
    stripped = text.strip()
    match = _COMMAND.fullmatch(stripped)
    if match is None or "\n" in stripped:
        return False
    command = find(match[1])
    command.run(chat, (match[2] or "").strip())
    return True


class CommandCompleter(Completer):
    """Completes commands and their arguments; says nothing about messages."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in document.text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name.lower()):
                    shown = command.name + (" " if command.usage else "")
                    yield Completion(shown, -len(name), command.name, command.help)
            return
        known = COMMANDS.get(ALIASES.get(name, name))
        if known is None:
            return
        word = argument.rpartition(" ")[2]
        try:
            items = list(known.complete(self._chat, argument))
        except (Gpt2cliError, OSError):
            return
        for item in items:
            if item.text.startswith(word) and item.text != word:
                yield Completion(item.text, -len(word), one_line(item.text), one_line(item.meta))
