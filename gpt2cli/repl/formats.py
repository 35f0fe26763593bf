"""How a conversation becomes one text for a model that continues texts.

A format lays a conversation out in parts; `Conversation` turns each part into tokens once. What the
model generated stays the very tokens that it generated, so that the next turn finds them in the cache.

==========  =============================================================================
story       user and model write one text by turns (default of base models)
transcript  ``User:`` and ``Assistant:`` before each turn; an answer ends where the next
            speaker begins
dialogpt    each turn closed by end-of-text, as DialoGPT was trained (Zhang et al. 2020,
            arXiv 1911.00536)
template    the chat template that came with the tokenizer
raw         the text exactly as it is typed
==========  =============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.options import ChatFormat
from gpt2cli.repl.template import ChatTemplate, read_template
from gpt2cli.repl.tree import Turn
from gpt2cli.text.parts import TextPart

FORMATS: tuple[str, ...] = get_args(ChatFormat)
USER, ASSISTANT = "User:", "Assistant:"

_CLOSING = tuple(".,;:!?)]}…%")


@dataclass(frozen=True, slots=True)
class Special:
    """Text in which special tokens are read as tokens; it never comes from a person or a model."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The place of a turn's answer, as the model generated it."""

    turn: Turn


Part = str | int | Special | Answer
"""Plain text, one token id, text with special tokens, or an answer."""


def runs(parts: Sequence[Part]) -> list[Part | list[TextPart]]:
    """``parts`` with each run of texts that has a `Special` in it as one, to be tokenised together."""
    found: list[Part | list[TextPart]] = []
    at = 0
    while at < len(parts):
        end = at
        while end < len(parts) and isinstance(parts[end], str | Special):
            end += 1
        run = parts[at:end]
        if any(isinstance(part, Special) for part in run):
            texts = [
                TextPart(p.text, True) if isinstance(p, Special) else TextPart(str(p), False) for p in run
            ]
            found.append([part for part in texts if part.text])
        else:
            end = max(end, at + 1)
            found += parts[at:end]
        at = end
    return found


class Format(Protocol):
    """One way to lay out a conversation."""

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer, besides an end-of-text token."""
        ...

    @property
    def strips(self) -> bool:
        """Whether white space around an answer is no part of it."""
        ...

    @property
    def lead(self) -> str:
        """What stands before an answer whose tokens are not known."""
        ...

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        """All that the model sees: ``system``, the ``turns``, and ``user``, ready for an answer.

        Without ``user`` it ends with the last answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Raw:
    """One text, nothing added."""

    name: str = "raw"
    stops: tuple[str, ...] = ()
    strips: bool = False
    lead: str = ""
    joint: str = ""
    """What stands between two texts that no white space separates."""

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        parts: list[Part] = [system]
        before = system
        for turn in turns:
            parts += [self._joined(before, turn.user), Answer(turn)]
            before = turn.answer or turn.user or before
        if user is not None:
            parts.append(self._joined(before, user))
        return parts

    def _joined(self, before: str, text: str) -> str:
        """``text`` with the joint before it, where one is missing."""
        if not before or not text or before[-1].isspace() or text[0].isspace() or text[0] in _CLOSING:
            return text
        return self.joint + text


@dataclass(frozen=True, slots=True)
class Transcript:
    """Lines of speakers, the system text above them."""

    name: str = "transcript"
    stops: tuple[str, ...] = (f"\n{USER}", f"\n{ASSISTANT}")
    strips: bool = True
    lead: str = " "

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        parts: list[Part] = [f"{system}\n\n"] if system else []
        for turn in turns:
            parts += [self._asked(turn.user), Answer(turn), "\n"]
        if user is not None:
            parts.append(self._asked(user))
        elif turns:
            parts.pop()
        return parts

    def _asked(self, user: str) -> str:
        return f"{USER} {user}\n{ASSISTANT}"


@dataclass(frozen=True, slots=True)
class DialoGpt:
    """Every turn ends with the end-of-text token ``end``; a system text is a first turn."""

    end: int
    name: str = "dialogpt"
    stops: tuple[str, ...] = ()
    strips: bool = True
    lead: str = ""

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        parts: list[Part] = [system, self.end] if system else []
        for turn in turns:
            parts += [turn.user, self.end, Answer(turn), self.end]
        if user is not None:
            parts += [user, self.end]
        elif turns:
            parts.pop()
        return parts


@dataclass(frozen=True, slots=True)
class Template:
    """The tokenizer's own chat template.

    It is rendered with placeholders for what people and the model said, so that a special token typed
    in a message stays plain text.
    """

    template: ChatTemplate
    name: str = "template"
    stops: tuple[str, ...] = ()
    strips: bool = True
    lead: str = ""

    def layout(self, system: str, turns: Sequence[Turn], user: str | None) -> list[Part]:
        said: list[tuple[str, str | Answer]] = []
        for turn in turns:
            said += [("user", turn.user), ("assistant", Answer(turn))]
        if user is not None:
            said.append(("user", user))
        if not system:
            return self._rendered(said, user is not None)
        try:
            return self._rendered([("system", system), *said], user is not None)
        except ModelFileError:
            # Gemma's knows no system: its text stands before the first message, as its authors advise.
            if not said:
                raise
            first = f"{system}\n\n{said[0][1]}"
            return self._rendered([("user", first), *said[1:]], user is not None)

    def _rendered(self, messages: Sequence[tuple[str, str | Answer]], prompt: bool) -> list[Part]:
        parts: list[Part] = []
        for piece in self.template.render([role for role, _ in messages], prompt=prompt):
            parts.append(Special(piece.text))
            if piece.message is not None:
                content = messages[piece.message][1]
                if isinstance(content, str):
                    content = content.lstrip() if piece.strips_begin else content
                    content = content.rstrip() if piece.strips_end else content
                parts.append(content)
        return parts


def choose_format(checkpoint: Checkpoint, asked: str | None = None, name: str = "") -> Format:
    """The format ``asked`` for, or the one that suits the model.

    A chat template that came with the tokenizer decides; else a model whose ``name``, or directory,
    says DialoGPT was trained on turns closed by end-of-text; every other model continues a story.
    Raises `UsageError` for a format that the model cannot do, `ModelFileError` for a damaged template.
    """
    if asked is not None and asked not in FORMATS:
        raise UsageError(f"{asked!r} is not a format", hint=f"formats: {', '.join(FORMATS)}")
    template = read_template(checkpoint.directory) if asked in (None, "template") else None
    if asked is None:
        is_dialogue = any("dialogpt" in text.lower() for text in (name, checkpoint.directory.name))
        can = is_dialogue and checkpoint.config.eos_token_ids
        asked = "template" if template is not None else "dialogpt" if can else "story"
    if asked == "story":
        return Raw("story", joint=" ")
    if asked == "transcript":
        return Transcript()
    if asked == "raw":
        return Raw()
    if asked == "dialogpt":
        ends = checkpoint.config.eos_token_ids
        if not ends:
            raise UsageError("format dialogpt: the model has no end-of-text token")
        return DialoGpt(ends[0])
    if template is None:
        raise UsageError(
            "format template: no chat template came with this model",
            hint="use story, transcript or raw",
        )
    return Template(template)
