"""Keeping the turns of a conversation in the log of runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2cli.cli.run_log import RunKeeper

if TYPE_CHECKING:
    from gpt2cli.core.results import Choice, Stats
    from gpt2cli.repl.conversation import Conversation
    from gpt2cli.repl.turn_request import TurnRequest


def keep_turns(keeper: RunKeeper, conversation: Conversation) -> Conversation:
    """``conversation``, each draw of which is kept as a run, with the name of its session.

    A conversation that is not saved has a name by chance there, so that its turns are found together.
    """
    if not keeper.on:
        return conversation
    unsaved = f"unsaved-{secrets.token_hex(4)}"

    def keep(request: TurnRequest, choices: Sequence[Choice], stats: Stats | None) -> None:
        from gpt2cli.repl.speaker import as_engine

        keeper.warn = conversation.warn
        session = conversation.session.name if conversation.session is not None else None
        engine, context, options = as_engine(conversation.engine), request.context, request.options
        session = session or unsaved
        if engine is None:
            name = conversation.model
            keeper.keep_remote("chat", name, context.text, options, choices, session=session)
        else:
            keeper.keep(
                *("chat", engine, context.text, options, choices, stats),
                prompt_ids=context.ids,
                session=session,
            )

    conversation.keep = keep
    return conversation
