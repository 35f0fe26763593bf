"""Commands that draw answers and walk between turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError
from gpt2cli.repl.commands.arguments import split
from gpt2cli.repl.prompt import edit_in_editor
from gpt2cli.repl.text_layout import side_by_side, tree_lines
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.repl.chat import Chat

MAX_BRANCHES = 16


def regen(chat: Chat, argument: str) -> None:
    """``/regen``."""
    conversation = chat.conversation
    overrides = conversation.parse_overrides(split(argument))
    chat.draw(lambda: conversation.regenerate(**overrides))


def go_on(chat: Chat, argument: str) -> None:
    """``/continue``."""
    conversation = chat.conversation
    overrides = conversation.parse_overrides(split(argument))
    chat.draw(lambda: conversation.continue_answer(**overrides))


def branch(chat: Chat, argument: str) -> None:
    """``/branch``: draw, show, ask."""
    conversation = chat.conversation
    first, *words = split(argument) or ["3"]
    if not first.isdecimal() or not 2 <= int(first) <= MAX_BRANCHES:
        raise UsageError(f"/branch: {one_line(first)[:40]!r} is not a number from 2 to {MAX_BRANCHES}")
    if not _draw_branches(chat, int(first), conversation.parse_overrides(words)):
        chat.view.note("stopped before the first word")
        return
    turns = conversation.branches
    heads = [f"{number} · seed {turn.seed}" for number, turn in enumerate(turns, 1)]
    chat.view.lines(side_by_side(heads, [turn.answer for turn in turns], chat.view.width))
    chosen = chat.prompt.ask(f"take which? [1-{len(turns)}, Enter: none] ").strip()
    if not chosen:
        chat.view.note("none taken; all are in the tree: " + ", ".join(f"/go {turn.id}" for turn in turns))
        return
    if not chosen.isdecimal() or not 1 <= int(chosen) <= len(turns):
        raise UsageError(
            f"{one_line(chosen)[:40]!r} is none of 1 to {len(turns)}",
            hint="all are in the tree: " + ", ".join(f"/go {turn.id}" for turn in turns),
        )
    turn = conversation.take(int(chosen) - 1)
    chat.view.note(f"turn {turn.id} taken")


def _draw_branches(chat: Chat, count: int, overrides: dict[str, Any]) -> bool:
    """Draw with a line that counts tokens; false when Ctrl-C came before any."""
    conversation, view = chat.conversation, chat.view
    tokens = 0
    with chat.tty.interruptible(conversation.engine.interrupt):
        chunks = conversation.branch(count, **overrides)
        if chat.tty.interrupted:
            conversation.engine.interrupt()
        try:
            for chunk in chunks:
                tokens += chunk.token is not None
                if tokens % count == 0:
                    view.live(f"{count} answers · {tokens} tokens · Ctrl-C stops")
        finally:
            chunks.close()
            view.clear_live()
    return bool(conversation.branches)


def undo(chat: Chat, argument: str) -> None:
    """``/undo``."""
    left = chat.conversation.undo()
    if left is None:
        raise UsageError("there is no turn to undo")
    chat.view.note(f"turn {left.id} is undone; /redo comes back to it")


def redo(chat: Chat, argument: str) -> None:
    """``/redo``."""
    if chat.conversation.redo() is None:
        raise UsageError("there is no turn to come back to", hint="/tree shows all turns, /go TURN walks")
    chat.show_place()


def tree(chat: Chat, argument: str) -> None:
    """``/tree``."""
    lines = tree_lines(chat.conversation.tree, chat.view.width)
    if lines:
        chat.view.lines(lines)
    else:
        chat.view.note("no turns yet")


def go(chat: Chat, argument: str) -> None:
    """``/go``."""
    if not argument.isdecimal():
        raise UsageError("/go takes the number of a turn", hint="/tree shows them")
    chat.conversation.go(int(argument))
    chat.show_place()


def clear(chat: Chat, argument: str) -> None:
    """``/clear``."""
    left = chat.conversation.tree.current
    chat.conversation.clear()
    chat.view.note("a new text begins" + (f"; /go {left.id} comes back" if left else ""))


def edit(chat: Chat, argument: str) -> None:
    """``/edit``."""
    text = edit_in_editor(chat.tty, chat.terminal, argument)
    if text is None:
        chat.view.note("the editor failed; nothing is changed")
    else:
        chat.draft = text
