"""`gpt2cli chat` without a terminal: a line in is a turn, a line out its answer, and nothing else.

An answer is one line: line breaks inside it become one space, those at its end go. ``--json`` has it
as it is: one object a turn. A line in may then be an object too, ``{"user": …}`` with options beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gpt2cli.errors import Gpt2cliError, ReaderGone, UsageError
from gpt2cli.options import shown
from gpt2cli.repl.conversation import Conversation
from gpt2cli.repl.options import OPTION_NAMES
from gpt2cli.repl.tree import Turn
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import Sanitizer

_BREAKS = re.compile(r"[\r\n]+")


class OneLine:
    """Passes a text on without its line breaks: a space stands for one, or several, inside of it."""

    def __init__(self) -> None:
        self._begun = self._broken = False

    def push(self, text: str) -> str:
        """The part of ``text`` that belongs on the line."""
        kept = text.strip("\r\n")
        if not kept:
            self._broken = self._broken or bool(text)
            return ""
        before = " " if self._begun and (self._broken or text[0] in "\r\n") else ""
        self._begun, self._broken = True, text[-1] in "\r\n"
        return before + _BREAKS.sub(" ", kept)


def run_plain(
    terminal: Terminal, conversation: Conversation, lines: Iterable[str], *, as_json: bool, sanitize: bool
) -> int:
    """Answer every line; the exit code: 0, or that of the first error.

    An error is one line on stderr, and an empty answer (``--json``: an object with ``error``), so that
    answer *n* is that of line *n*; the next line goes on. A signal ends the answer, which is kept, and then
    the program.
    """
    code = 0
    for line in lines:
        terminal.signals.soften(conversation.engine.interrupt)
        try:
            user, overrides = parse_line(line) if as_json else (line, {})
            turn = _answer(terminal, conversation, user, overrides, streams=not as_json, sanitize=sanitize)
        except ReaderGone:
            raise
        except Gpt2cliError as error:
            code = code or error.exit_code
            # The line of the answer ends first: both may go to one screen.
            terminal.write(json_line(_error_document(error)) if as_json else "\n")
            terminal.error(error, error.hint)
        else:
            if as_json and turn is not None:
                terminal.write(json_line(turn_document(conversation, turn, sanitize=sanitize)))
        if terminal.signals.received is not None:
            raise terminal.signals.received
        terminal.signals.soften(None)
    return code


def parse_line(line: str) -> tuple[str, dict[str, Any]]:
    """What a line of ``--json`` asks: a text, or an object of ``user`` and options. Raises `UsageError`."""
    if not line.lstrip().startswith("{"):
        return line, {}
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"not valid JSON ({shown(str(error))})", hint="a line that begins with { is an object"
        ) from None
    user = asked.pop("user", None)
    if not isinstance(user, str):
        raise UsageError('the object has no text under "user"')
    if unknown := asked.keys() - {*OPTION_NAMES}:
        raise UsageError(
            f"{shown(min(unknown))} is not an option", hint=f"options: {', '.join(OPTION_NAMES)}"
        )
    # As in a row of `batch`, null is what was not given.
    asked = {name: value for name, value in asked.items() if value is not None}
    if (stop := asked.get("stop")) is not None:
        if not isinstance(stop, str | list):
            raise UsageError("stop: a text, or a list of texts")
        asked["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return user, asked


def _answer(
    terminal: Terminal,
    conversation: Conversation,
    user: str,
    overrides: dict[str, Any],
    *,
    streams: bool,
    sanitize: bool,
) -> Turn | None:
    """Draw an answer and put it out as it comes; the new turn, None where an interrupt left none."""
    before = conversation.tree.current
    dropped = conversation.last
    cleaner, line = Sanitizer(), OneLine()
    with _warnings_after(conversation):
        chunks = conversation.answer(user, **overrides)
        if terminal.signals.received is not None:
            # It came while the text was tokenised: the stream forgets what was asked before it was there.
            conversation.engine.interrupt()
        try:
            for chunk in chunks:
                text = line.push(cleaner.push(chunk.text) if sanitize else chunk.text)
                if streams and text:
                    terminal.write(text)
        finally:
            chunks.close()
        if streams:
            terminal.write("\n")
    last = conversation.last
    if last is not None and last is not dropped and last.dropped_turns:
        turns = "turn" if last.dropped_turns == 1 else "turns"
        terminal.warn(f"the context is full: the oldest {last.dropped_turns} {turns} were dropped")
    turn = conversation.tree.current
    return None if turn is before else turn


@contextmanager
def _warnings_after(conversation: Conversation) -> Iterator[None]:
    """Keep what there is to warn of until the block, and with it the line of an answer, has ended."""
    warn, held = conversation.warn, list[str]()
    conversation.warn = held.append
    try:
        yield
    finally:
        conversation.warn = warn
        for text in held:
            warn(text)


def turn_document(conversation: Conversation, turn: Turn, *, sanitize: bool) -> dict[str, Any]:
    """A turn as ``--json`` has it."""
    document: dict[str, Any] = {
        "turn": turn.id,
        "user": turn.user,
        "answer": Sanitizer().push(turn.answer) if sanitize else turn.answer,
        "token_ids": list(turn.answer_ids),
        "seed": turn.seed,
        "finish_reason": turn.finish_reason,
        "options": turn.options,
    }
    stats = conversation.last
    if stats is not None:
        document["usage"] = {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "prefilled_tokens": stats.prefilled_tokens,
            "completion_tokens": stats.completion_tokens,
            "dropped_turns": stats.dropped_turns,
        }
        document["speculation"] = {
            "steps": stats.steps,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
        }
        document["timings"] = {
            "prefill_s": round(stats.prefill_s, 4),
            "first_token_s": round(stats.first_token_s, 4),
            "decode_s": round(stats.decode_s, 4),
            "tokens_per_s": None if stats.tokens_per_s is None else round(stats.tokens_per_s, 2),
        }
    return document


def _error_document(error: Gpt2cliError) -> dict[str, Any]:
    return {"error": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}}
