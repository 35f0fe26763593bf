"""What comes from a server, as we have it: pieces of texts, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def whole(value: object) -> str:
    """A text of a JSON document, with what UTF-8 cannot hold replaced; empty for what is no text."""
    return value.translate(_SURROGATES) if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a server tells of it: its text, and its id where it says that."""

    text: str | None = None
    id: int | None = None
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens at its place, each with its log-probability."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a text. The last one of a text has ``finish_reason``."""

    sequence: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that were read and drawn, by the server's count; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def plus(self, other: Usage) -> Usage:
        """The sum for one prompt that was sent twice: its tokens are counted once."""
        if other.completion_tokens is None:
            return self
        return replace(other, completion_tokens=other.completion_tokens + (self.completion_tokens or 0))


@dataclass(slots=True)
class Text:
    """One text as far as it has come."""

    index: int
    seed: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: Piece) -> None:
        """Take in one of its pieces."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
