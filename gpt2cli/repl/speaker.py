"""What answers in a conversation: an `Engine`, or a model on a server."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gpt2cli.repl.formats import Format, choose_format
from gpt2cli.repl.remote_format import remote_format
from gpt2cli.text.parts import TextPart

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Chunk
    from gpt2cli.options import GenerateOptions
    from gpt2cli.repl.remote_speaker import RemoteSpeaker


class Sizes(Protocol):
    """What a conversation has to know of a model."""

    @property
    def n_positions(self) -> int:
        """Tokens of the context."""
        ...

    @property
    def vocab_size(self) -> int: ...


class TextTokenizer(Protocol):
    """Text as numbers and back."""

    @property
    def longest_token(self) -> int | None:
        """The most characters of a token."""
        ...

    def encode(self, text: str, *, continues: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False, continues: bool = False) -> str: ...


class Speaker(Protocol):
    """The part of an `Engine` that a conversation needs."""

    @property
    def config(self) -> Sizes: ...

    @property
    def tokenizer(self) -> TextTokenizer | None: ...

    def options(self, **given: Any) -> GenerateOptions: ...

    def encode(self, prompt: str, *, continues: bool = False) -> list[int]: ...

    def encode_parts(self, parts: Sequence[TextPart], *, continues: bool = False) -> list[int]: ...

    def stream(
        self, prompt: Sequence[int], options: GenerateOptions | None = None
    ) -> Generator[Chunk, None, None]: ...

    def interrupt(self) -> None: ...


def as_engine(speaker: Speaker) -> Engine | None:
    """``speaker`` where it is a model of this machine."""
    return speaker if hasattr(speaker, "checkpoint") else None  # type: ignore[return-value]


def as_remote(speaker: Speaker) -> RemoteSpeaker | None:
    """``speaker`` where it is a model on a server."""
    return None if hasattr(speaker, "checkpoint") else speaker  # type: ignore[return-value]


def unit_of(speaker: Speaker) -> str:
    """What its contexts are counted in."""
    return "tokens" if as_engine(speaker) is not None else "characters, about"


def format_for(speaker: Speaker, asked: str | None, name: str) -> Format:
    """The format ``asked`` for, or the one that suits the model. Raises as `choose_format`."""
    engine = as_engine(speaker)
    if engine is not None:
        return choose_format(engine.checkpoint, asked, name)
    remote = as_remote(speaker)
    assert remote is not None
    return remote_format(asked, chats=remote.chats)
