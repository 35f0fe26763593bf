"""`chat` with a model on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gpt2cli.cli.remote import Place
from gpt2cli.repl.conversation import Conversation
from gpt2cli.repl.remote_format import remote_format
from gpt2cli.repl.remote_speaker import RemoteSpeaker
from gpt2cli.repl.sessions import Saved, Session


class Asked(Protocol):
    """What a command line asks of a conversation."""

    @property
    def format(self) -> str | None: ...
    @property
    def system(self) -> str: ...
    @property
    def given(self) -> Mapping[str, Any]: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def session(self) -> Session | None: ...
    @property
    def saved(self) -> Saved | None: ...


def speaker(place: Place, warn: Callable[[str], None]) -> RemoteSpeaker:
    """The model of a server that was asked for it. Raises `Gpt2cliError`."""
    return RemoteSpeaker(place.client(warn), warn)


def conversation(request: Asked, place: Place, notes: list[str]) -> Conversation:
    """Begin the conversation, or go on with it; ``notes`` are what to warn of. Raises `Gpt2cliError`."""
    began: list[Conversation] = []

    def warn(text: str) -> None:
        if began:
            began[0].warn(text)
        else:
            notes.append(text)

    found = speaker(place, warn)
    began.append(
        Conversation(
            found,
            remote_format(request.format, chats=found.chats),
            model=found.name,
            system=request.system,
            given=request.given,
            seed=request.seed,
            session=request.session,
            saved=request.saved,
            warn=notes.append,
            draft="off",
        )
    )
    return began[0]
