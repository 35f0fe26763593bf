"""What the model sees: a conversation as tokens, its oldest turns dropped where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2cli.errors import PromptTooLong
from gpt2cli.repl.formats import Answer, Format, Part, Special, runs
from gpt2cli.repl.speaker import unit_of
from gpt2cli.repl.tree import Tree, Turn
from gpt2cli.text.parts import TextPart

if TYPE_CHECKING:
    from gpt2cli.repl.speaker import Speaker, TextTokenizer

MAX_PIECES = 4096
"""Texts whose tokens are kept, each some dozens of bytes."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the model sees next. ``dropped`` turns of the path are no longer part of it, the oldest."""

    ids: list[int]
    text: str
    turns: tuple[Turn, ...]
    dropped: int
    newly_dropped: int = 0
    """Those of them that the answer before still saw."""


class Contexts:
    """Lays conversations out for one model, in one format, under one system text."""

    def __init__(self, engine: Speaker, format: Format, system: str) -> None:
        self.engine, self.format, self.system = engine, format, system
        self._pieces: dict[tuple[str | tuple[TextPart, ...], bool], tuple[int, ...]] = {}
        self._answers: dict[int, Sequence[int]] = {}

    def fit(
        self,
        tree: Tree,
        parent: Turn | None,
        user: str,
        max_new_tokens: int,
        goes_on: Turn | None = None,
        answer: Sequence[int] = (),
    ) -> Context:
        """The context after ``parent`` for an answer to ``user``; where one ``goes_on``, with the tokens of
        its ``answer``.

        Room is left for the new tokens, or half the context where they are more. When it is
        exceeded, whole oldest turns are dropped until a quarter of the context is free besides:
        what is left has to be computed again, which then is not for every turn. The system text
        stays. Raises `PromptTooLong` when the newest turn alone is too long.
        """
        size = self.engine.config.n_positions
        self._check_length(user)
        budget = size - min(max_new_tokens, size // 2)
        seen = turns = self._seen(tree, parent, goes_on or parent)
        ids = self._ids(turns, user, answer)
        if len(ids) > budget and turns:
            turns = self._shortened(turns, user, answer, (budget - size // 4, budget))
            ids = self._ids(turns, user, answer)
        if len(ids) >= size:
            raise self._too_long(
                f"has {len(ids)} {unit_of(self.engine)} with what must stand around it", answer
            )
        before = 0 if parent is None else parent.depth + 1
        return Context(ids, self._text(ids), tuple(turns), before - len(turns), len(seen) - len(turns))

    def begun(self, tree: Tree, parent: Turn | None, user: str, max_new_tokens: int) -> list[int]:
        """The ids of the context that `fit` gives, up to the end of ``user``: a message that may go on.

        Raises `PromptTooLong`, also where a format does not have the message as it is.
        """
        turns = self.fit(tree, parent, user, max_new_tokens).turns
        parts = list(self.format.layout(self.system, turns, user))
        while parts:
            last = parts.pop()
            if isinstance(last, str) and (at := last.rfind(user)) >= 0:
                parts.append(last[: at + len(user)])
                break
        return self._ids_of(parts)

    def so_far(self, tree: Tree) -> Context:
        """The text up to here: what the last answer saw, and itself."""
        last = tree.current
        turns = self._seen(tree, last, last)
        ids = self._ids(turns, None, ())
        before = 0 if last is None else last.depth + 1
        return Context(ids, self._text(ids), tuple(turns), before - len(turns))

    def _check_length(self, user: str) -> None:
        """Refuse, before tokenising it, a message that cannot fit."""
        longest = self.engine.tokenizer.longest_token if self.engine.tokenizer else None
        if longest and len(user) > longest * self.engine.config.n_positions:
            raise self._too_long(f"has {len(user)} characters", ())

    def _too_long(self, what: str, answer: Sequence[int]) -> PromptTooLong:
        size = self.engine.config.n_positions
        unit = unit_of(self.engine)
        subject, hint = (
            ("the turn", "send a new message") if answer else ("the message", "send a shorter one")
        )
        return PromptTooLong(
            f"{subject} {what}; the model's context is {size} {unit}, and one must be left", hint=hint
        )

    def _seen(self, tree: Tree, parent: Turn | None, drawn: Turn | None) -> list[Turn]:
        """The path up to ``parent``, from the first turn that the answer of ``drawn`` saw; never more
        turns than a context has tokens.
        """
        turns: list[Turn] = []
        if parent is None or drawn is None or (drawn is not parent and drawn.first == drawn.id):
            return turns
        for turn in tree.back(parent):
            turns.append(turn)
            if turn.id == drawn.first or len(turns) >= self.engine.config.n_positions:
                break
        return turns[::-1]

    def _shortened(
        self, turns: list[Turn], user: str, answer: Sequence[int], limits: tuple[int, int]
    ) -> list[Turn]:
        """The most of the newest turns that fit into the first limit; one alone may fill the second."""
        target, budget = limits
        low, high = 1, len(turns)
        while low < high:
            middle = (low + high) // 2
            if len(self._ids(turns[middle:], user, answer)) <= target:
                high = middle
            else:
                low = middle + 1
        if low == len(turns) and len(self._ids(turns[-1:], user, answer)) <= budget and len(turns) > 1:
            low -= 1
        return turns[low:]

    def _ids(self, turns: Sequence[Turn], user: str | None, answer: Sequence[int]) -> list[int]:
        return [*self._ids_of(self.format.layout(self.system, turns, user)), *answer]

    def _ids_of(self, parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        for part in runs(parts):
            if not ids and isinstance(part, Answer):
                # Its prompt was empty: it began with bos.
                ids += self.engine.encode("")
            ids += self._part(part, bool(ids))
        return ids or self.engine.encode("")

    def _text(self, ids: Sequence[int]) -> str:
        return self.engine.tokenizer.decode(ids, special_tokens=True) if self.engine.tokenizer else ""

    def _part(self, part: Part | list[TextPart], continues: bool) -> Sequence[int]:
        if isinstance(part, int):
            return (part,)
        if isinstance(part, Answer):
            return self.answer_ids(part.turn)
        if not part or isinstance(part, Special):
            return ()
        key = (part if isinstance(part, str) else tuple(part), continues)
        known = self._pieces.get(key)
        if known is None:
            if len(self._pieces) >= MAX_PIECES:
                self._pieces.clear()
            if isinstance(part, str):
                known = tuple(self.engine.encode(part, continues=continues))
            else:
                known = tuple(self.engine.encode_parts(part, continues=continues))
            self._pieces[key] = known
        return known

    def answer_ids(self, turn: Turn) -> Sequence[int]:
        """The tokens of a turn's answer: those that were generated, where this model writes the same
        text with them; else the answer is tokenised.
        """
        known = self._answers.get(turn.id)
        if known is None:
            if len(self._answers) >= MAX_PIECES:
                self._answers.clear()
            known = self._answers[turn.id] = self._checked(turn)
        return known

    def begun_answer(self, turn: Turn) -> tuple[list[int], str]:
        """The tokens and the text of an answer that is to be gone on with, in whole characters."""
        ids, text = list(self.answer_ids(turn)), turn.answer
        if self.engine.tokenizer is not None:
            ids, start = whole_characters(self.engine.tokenizer, ids, text)
            text = start.lstrip() if self.format.strips else start
        return ids, text

    def _checked(self, turn: Turn) -> Sequence[int]:
        ids, vocabulary = turn.answer_ids, self.engine.config.vocab_size
        valid = all(0 <= token < vocabulary for token in ids)
        text = self.engine.tokenizer.decode(ids, continues=True) if valid and self.engine.tokenizer else ""
        if valid and text.strip() == turn.answer.strip():
            return ids
        return self.engine.encode(self.format.lead + turn.answer, continues=True) if turn.answer else ()


def ids_of_text(tokenizer: TextTokenizer, ids: Sequence[int], text: str) -> list[int]:
    """The tokens of ``text``, a beginning of what ``ids`` say: the same tokens as far as possible.

    A stop may begin in the middle of a token; what is left of that one is tokenised.
    """
    for end in range(len(ids), 0, -1):
        start = tokenizer.decode(ids[:end], continues=True)
        if start == text:
            return list(ids[:end])
        if text.startswith(start) and not start.endswith("\ufffd"):
            return [*ids[:end], *tokenizer.encode(text[len(start) :], continues=True)]
    return tokenizer.encode(text, continues=True) if text else []


def whole_characters(tokenizer: TextTokenizer, ids: list[int], text: str) -> tuple[list[int], str]:
    """The tokens of ``text`` and itself, without a last character that was cut in the middle.

    Its first bytes are drawn again.
    """
    if text.endswith("\ufffd"):
        for end in range(len(ids) - 1, max(-1, len(ids) - 4), -1):
            start = tokenizer.decode(ids[:end], continues=True)
            if not start.endswith("\ufffd"):
                return ids[:end], start
    return ids, text
