"""A conversation as a document: Markdown and text for people, JSON with all that is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.repl.conversation import Conversation
from gpt2cli.repl.sessions import turn_event
from gpt2cli.repl.tree import Turn

VERSION = 1


@dataclass(frozen=True, slots=True)
class Document:
    """What is exported."""

    name: str | None
    model: str
    revision: str | None
    format: str
    system: str
    options: dict[str, Any]
    seed: int
    path: list[Turn]
    turns: list[Turn]

    @classmethod
    def of(cls, conversation: Conversation) -> Document:
        """The conversation up to the current turn, and all turns beside that path."""
        session = conversation.session
        return cls(
            session.name if session else None,
            conversation.model,
            conversation.revision,
            conversation.format.name,
            conversation.system,
            {name: list(v) if isinstance(v, tuple) else v for name, v in conversation.given.items()},
            conversation.seed,
            conversation.tree.path(),
            list(conversation.tree),
        )


def export(conversation: Conversation, kind: str) -> str:
    """The conversation as ``markdown``, ``json`` or ``text``. Raises `UsageError` for another kind.

    Markdown and text have the path to the current turn, JSON the whole tree.
    """
    if kind not in EXPORTS:
        raise UsageError(f"{kind!r} is no kind of export", hint=f"kinds: {', '.join(EXPORTS)}")
    return EXPORTS[kind](Document.of(conversation))


def kind_of_file(name: str) -> str:
    """The kind of export that a file's name asks for: by its ending, else text."""
    ending = name.rpartition(".")[2].lower()
    return {"md": "markdown", "markdown": "markdown", "json": "json"}.get(ending, "text")


def to_json(document: Document) -> str:
    """One object: what began the session, ``path`` (the ids from the first turn to the current one),
    ``turns`` (all of them, as the session's file has them).
    """
    turns = [turn_event(turn) for turn in document.turns]
    for turn in turns:
        del turn["event"], turn["time"]
    whole = {
        "version": VERSION,
        "session": document.name,
        "model": document.model,
        "revision": document.revision,
        "format": document.format,
        "system": document.system,
        "options": document.options,
        "seed": document.seed,
        "path": [turn.id for turn in document.path],
        "turns": turns,
    }
    return json.dumps(whole, indent=2) + "\n"


def to_text(document: Document) -> str:
    """The text that the two wrote: a story as one text, else lines of speakers."""
    if document.format in ("story", "raw"):
        joint = " " if document.format == "story" else ""
        return _story(document, joint) + "\n"
    blocks = [document.system] if document.system else []
    for turn in document.path:
        blocks += [f"User: {turn.user}", f"Assistant: {turn.answer}"]
    return "\n\n".join(blocks) + "\n"


def _story(document: Document, joint: str) -> str:
    text = document.system
    for turn in document.path:
        separated = not text or not turn.user or text[-1].isspace() or turn.user[0].isspace()
        text += ("" if separated else joint) + turn.user + turn.answer
    return text


def to_markdown(document: Document) -> str:
    """A heading, what is needed to draw it again, and the turns as quotations and paragraphs."""
    model = document.model + (f" ({document.revision[:12]})" if document.revision else "")
    lines = [f"# {_escaped(document.name or 'Conversation')}", ""]
    options = ", ".join(f"{name} {value}" for name, value in document.options.items())
    facts = [f"model {model}", f"format {document.format}", f"seed {document.seed}", options]
    lines += [_escaped(" · ".join(filter(None, facts))), ""]
    if document.system:
        lines += ["## System", "", _escaped(document.system), ""]
    for number, turn in enumerate(document.path, 1):
        lines += [f"## {number}", "", *(f"> {line}" for line in _escaped(turn.user).split("\n")), ""]
        lines += [_escaped(turn.answer.strip()), ""]
    return "\n".join(lines)


_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~])|^(\s*)([#+-]|\d+(?=[.)]))", re.MULTILINE)


def _escaped(text: str) -> str:
    """``text`` so that Markdown shows it as it is."""

    def escape(match: re.Match[str]) -> str:
        if match[1]:
            return f"\\{match[1]}"
        mark = match[3]
        return f"{match[2]}{mark}\\" if mark.isdigit() else f"{match[2]}\\{mark}"

    return _MARKUP.sub(escape, text)


EXPORTS: dict[str, Callable[[Document], str]] = {"markdown": to_markdown, "json": to_json, "text": to_text}
