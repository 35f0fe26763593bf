"""Commands that change how answers are drawn: options, seed, model, format, system text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2cli.errors import UsageError
from gpt2cli.hub.resolve import local_names
from gpt2cli.options import DRAFTS
from gpt2cli.repl.formats import FORMATS
from gpt2cli.repl.loader import Loader
from gpt2cli.repl.speaker import as_engine, as_remote
from gpt2cli.repl.status import short_name
from gpt2cli.settings import parse_value
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat


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
    if name.lower() == "suggest":
        wanted = bool(parse_value("suggest", value))
        if wanted and as_remote(chat.conversation.engine) is not None:
            raise UsageError("suggest is for a model on this machine; a server is not asked at every pause")
        chat.suggest = wanted
        return
    if name.lower() == "draft":
        _set_draft(chat, value)
        return
    chat.conversation.set_option(name, value)


def _set_draft(chat: Chat, value: str) -> None:
    """``/set draft=VALUE``: a word, or a model that is loaded now."""
    conversation = chat.conversation
    engine = as_engine(conversation.engine)
    if engine is None:
        raise UsageError("draft is for a model on this machine; the server runs its model in its own way")
    word = "auto" if value.lower() == "default" else value.lower()
    if word in DRAFTS:
        engine.draft_with(None)
        conversation.draft = word
        return
    loader = Loader(lambda: chat.start.load_engine(value))
    what, otherwise = f"loading {one_line(value)[:40]}", f"draft {conversation.draft} stays"
    loaded, name, _ = chat.wait_for(loader, what, otherwise)
    small = as_engine(loaded)
    if small is None:
        raise UsageError("a model on a server cannot guess ahead for one on this machine")
    engine.draft_with(small)
    conversation.draft = name


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
        if (remote := as_remote(conversation.engine)) is not None:
            view.text(remote.about)
        elif (engine := as_engine(conversation.engine)) is not None:
            config, name = engine.config, short_name(conversation.model)
            view.text(
                f"{name}: {config.n_layer} layers, {config.n_embd} wide, context {config.n_positions} tokens"
            )
        view.note("on this disk: " + ", ".join(local_names()))
        return
    loader = Loader(lambda: chat.start.load_engine(argument))
    what, otherwise = f"loading {one_line(argument)[:40]}", f"{short_name(conversation.model)} stays"
    speaker, name, revision = chat.wait_for(loader, what, otherwise)
    before = conversation.format.name
    conversation.set_model(speaker, name, revision)
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
