"""`chat` with a model on a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt2cli.cli.remote import Place
from gpt2cli.repl.conversation import Conversation
from gpt2cli.repl.remote_format import remote_format
from gpt2cli.repl.remote_speaker import RemoteSpeaker

if TYPE_CHECKING:
    from gpt2cli.cli.chat import ChatRequest


def speaker(place: Place, warn: Callable[[str], None]) -> RemoteSpeaker:
    """The model of a server that was asked for it. Raises `Gpt2cliError`."""
    return RemoteSpeaker(place.client(warn), warn)


def conversation(request: ChatRequest, place: Place, notes: list[str]) -> Conversation:
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
