"""Commands that show what is: context, probabilities, figures, options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError
from gpt2cli.repl.speaker import as_engine, as_remote, unit_of
from gpt2cli.repl.text_layout import coloured, token_table, token_texts, with_digits
from gpt2cli.repl.view import DIM
from gpt2cli.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat


def context(chat: Chat, argument: str) -> None:
    """``/context``: the text in full, with ``ids`` its tokens."""
    if argument not in ("", "ids"):
        raise UsageError("/context takes nothing or ids")
    conversation = chat.conversation
    found = conversation.context()
    size = conversation.engine.config.n_positions
    turns = f", the {found.dropped} oldest turns dropped" if found.dropped else ""
    unit = unit_of(conversation.engine)
    chat.view.note(f"{len(found.ids)} of {size} {unit}, format {conversation.format.name}{turns}:")
    if argument:
        chat.view.text(" ".join(map(str, found.ids)))
    elif found.text:
        chat.view.text(found.text)
    chat.view.note("your next message comes here")


def tokens(chat: Chat, argument: str) -> None:
    """``/tokens``."""
    if argument not in ("", "list"):
        raise UsageError("/tokens takes nothing or list")
    conversation = chat.conversation
    turn, engine = conversation.tree.current, as_engine(conversation.engine)
    if engine is None:
        raise UsageError(
            "the probabilities of tokens are not asked for from a server", hint="generate --logprobs"
        )
    tokenizer = engine.tokenizer
    if turn is None:
        raise UsageError("there is no answer yet")
    if not turn.logprobs or tokenizer is None:
        raise UsageError(
            "the probabilities of this answer are not kept, only those of the last one drawn by this model",
            hint="/regen draws it again",
        )
    detokenizer = Detokenizer(tokenizer)
    texts = token_texts(turn.logprobs, detokenizer.push)
    if argument:
        chat.view.lines(token_table(texts))
    elif chat.view.styled:
        chat.view.raw(coloured(texts, chat.view.width))
    else:
        chat.view.lines(with_digits(texts, chat.view.width))


def stats(chat: Chat, argument: str) -> None:
    """``/stats``."""
    conversation = chat.conversation
    last = conversation.last
    if last is None:
        raise UsageError("nothing has been drawn yet")
    speed = "-" if last.tokens_per_s is None else f"{last.tokens_per_s:.1f} tokens/s"
    if (remote := as_remote(conversation.engine)) is not None:
        chat.view.rows(
            [
                ("prompt", f"{last.prompt_tokens} tokens"),
                ("answer", f"{last.completion_tokens} tokens, in {last.decode_s:.2f} s"),
                ("first token", f"after {last.first_token_s * 1e3:.0f} ms"),
                ("speed", speed),
                ("engine", remote.about),
            ]
        )
        return
    engine = as_engine(conversation.engine)
    assert engine is not None
    info = engine.info
    chat.view.rows(
        [
            ("prompt", f"{last.prompt_tokens} tokens"),
            ("  kept", f"{last.cached_tokens} tokens, of the turns before"),
            ("  prefilled", f"{last.prefilled_tokens} tokens, in {last.prefill_s * 1e3:.0f} ms"),
            ("answer", f"{last.completion_tokens} tokens, in {last.decode_s:.2f} s"),
            ("first token", f"after {last.first_token_s * 1e3:.0f} ms"),
            ("speed", speed),
            ("steps", f"{last.steps}; of {last.drafted} tokens guessed ahead {last.accepted} were right"),
            ("context", f"{last.context_tokens} of {engine.config.n_positions} tokens"),
            ("engine", f"{info.device}, {info.precision}, {info.threads} threads"),
        ]
    )


def show(chat: Chat, argument: str) -> None:
    """``/show``: the options, and where each comes from."""
    conversation = chat.conversation
    options, view = conversation.options, chat.view
    rows = []
    for name in conversation.OPTION_NAMES:
        value: Any = conversation.seed if name == "seed" else getattr(options, name)
        if name == "stop":
            value = " ".join(map(repr, value)) or "none"
        origin = "" if name not in conversation.given else " (set)"
        rows.append((name, f"{value:g}{origin}" if isinstance(value, float) else f"{value}{origin}"))
    rows.append(("draft", conversation.draft))
    rows.append(("editing_mode", chat.editing_mode))
    rows.append(("suggest", "on" if chat.suggest else "off"))
    view.rows(rows)
    if conversation.session is not None and conversation.session.name is not None:
        view.text(f"session {conversation.session.name}", DIM)
