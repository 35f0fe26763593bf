"""How a conversation is laid out for a server: as a text, or as messages that the server lays out itself.

No tokenizer is needed here: a "token" is a character, by its code point, and what is beyond all code
points marks where a message begins and who says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2cli.errors import UsageError
from gpt2cli.repl.formats import FORMATS, Answer, Format, Part, Raw, Transcript
from gpt2cli.repl.tree import Turn

SYSTEM, USER, ASSISTANT = 0x110000, 0x110001, 0x110002
ROLES = {SYSTEM: "system", USER: "user", ASSISTANT: "assistant"}
CODES = ASSISTANT + 1


@dataclass(frozen=True, slots=True)
class Messages:
    """The server's own chat format."""

    name: str = "template"
    stops: tuple[str, ...] = ()
    strips: bool = True
    lead: str = ""

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        parts: list[Part] = [SYSTEM, system] if system else []
        for turn in turns:
            parts += [USER, turn.user, ASSISTANT, Answer(turn)]
        if user is not None:
            parts += [USER, user, ASSISTANT]
        return parts


class Characters:
    """A tokenizer whose tokens are characters."""

    longest_token = 1

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The code points of ``text``."""
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False, continues: bool = False) -> str:
        """The text, with a line for each message where there are any."""
        return "".join(chr(each) if each < SYSTEM else f"\n[{ROLES[each]}] " for each in ids).lstrip("\n")


def messages_of(ids: Sequence[int]) -> list[tuple[str, str]]:
    """The role and the text of each message; none where it is one text."""
    messages: list[tuple[str, list[int]]] = []
    for each in ids:
        if each in ROLES:
            messages.append((ROLES[each], []))
        elif messages:
            messages[-1][1].append(each)
    return [(role, "".join(map(chr, text))) for role, text in messages]


def remote_format(asked: str | None, *, chats: bool) -> Format:
    """The format ``asked`` for, else the server's own where its model ``chats``, else a story.

    Raises `UsageError`.
    """
    if asked is not None and asked not in FORMATS:
        raise UsageError(f"{asked!r} is not a format", hint=f"formats: {', '.join(FORMATS)}")
    asked = asked or ("template" if chats else "story")
    if asked == "dialogpt":
        raise UsageError(
            "format dialogpt is for a model on this machine", hint="use template: the server lays turns out"
        )
    if asked == "template":
        return Messages()
    if asked == "transcript":
        return Transcript()
    return Raw("story", joint=" ") if asked == "story" else Raw()
