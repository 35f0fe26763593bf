"""The chunks of a stream, or a whole answer, as pieces. Nothing of what a server sends is taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator

from gpt2cli.remote.pieces import Piece, Token, Usage, whole
from gpt2cli.remote.wire import CutOff
from gpt2cli.text.sanitize import one_line

DONE = "[DONE]"


class ServerFailed(Exception):
    """The server says in the middle of its answer that it failed; the text is what it says."""


def events(lines: Iterable[bytes]) -> Iterator[object]:
    """The documents of a stream of events, up to its end. Raises `CutOff`."""
    data: list[str] = []
    for line in lines:
        if line.startswith(b"data:"):
            data.append(line[5:].decode("utf-8", "replace").removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text.strip() == DONE:
                return
            yield parse(text)
    if data and (text := "\n".join(data)).strip() != DONE:
        # The empty line after the last event never came: it may be half of one.
        yield parse(text)


def parse(text: str | bytes) -> object:
    """A JSON document. Raises `CutOff`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CutOff("what it sends is no JSON") from None


def message_of(document: object) -> str | None:
    """What an error says, in the shapes that servers give it."""
    if not isinstance(document, dict):
        return None
    error = document.get("error", document)
    if isinstance(error, str):
        return one_line(error)[:500]
    for name in ("message", "detail"):
        text = error.get(name) if isinstance(error, dict) else None
        if isinstance(text, str) and text.strip():
            return one_line(text)[:500]
        if isinstance(text, list):
            return one_line(json.dumps(text))[:500]
    return "it does not say why" if "error" in document else None


class Reader:
    """Turns the documents of one answer into pieces of ``texts`` texts, the first of which is ``first``."""

    def __init__(self, texts: int, stops: Collection[str], first: int = 0) -> None:
        self.usage = Usage()
        self._texts, self._stops, self._first = texts, stops, first
        self._ended = [False] * texts

    @property
    def complete(self) -> bool:
        """Whether all texts have ended."""
        return all(self._ended)

    def read(self, document: object) -> Iterator[Piece]:
        """The pieces of a document. Raises `ServerFailed`, `CutOff`."""
        if not isinstance(document, dict):
            raise CutOff("what it sends is no answer")
        if document.get("error") or document.get("object") == "error":
            raise ServerFailed(message_of(document) or "it does not say why")
        self._count(document.get("usage"))
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                yield from self._piece(choice)

    def _piece(self, choice: dict[object, object]) -> Iterator[Piece]:
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < self._texts or self._ended[index]:
            return
        message = choice.get("delta") or choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        text = whole(text)
        reason = self._reason(choice)
        tokens = tuple(_tokens(choice))
        if text or tokens or reason:
            self._ended[index] = reason is not None
            yield Piece(self._first + index, text, tokens, reason)

    def _reason(self, choice: dict[object, object]) -> str | None:
        """Why a text ended, in our words where they can be known."""
        reason, why = choice.get("finish_reason"), choice.get("stop_reason")
        if not isinstance(reason, str) or not reason:
            return None
        if why in ("stop", "eos", "length", "context"):
            return str(why)
        if reason == "stop" and not self._stops:
            return "eos"
        return one_line(reason)[:40]

    def _count(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self.usage = Usage(
            _whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens")), _whole(cached)
        )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _tokens(choice: dict[object, object]) -> Iterator[Token]:
    """The tokens of a choice, as far as the server tells of them."""
    ids = [_whole(each) for each in _list(choice.get("token_ids"))]
    details = choice.get("logprobs")
    told = list(_details(details)) if isinstance(details, dict) else []
    for at in range(max(len(ids), len(told))):
        token = told[at] if at < len(told) else Token()
        yield Token(token.text, ids[at] if at < len(ids) else token.id, token.logprob, token.top)


def _details(details: dict[object, object]) -> Iterator[Token]:
    """The log-probabilities of completions (four lists), or of chat (a list of objects)."""
    for entry in _list(details.get("content")):
        if isinstance(entry, dict):
            top = [
                (whole(each.get("token")), _number(each.get("logprob")))
                for each in _list(entry.get("top_logprobs"))
                if isinstance(each, dict)
            ]
            likeliest = tuple((text, value) for text, value in top if value is not None)
            yield Token(whole(entry.get("token")), None, _number(entry.get("logprob")), likeliest)
    texts, values = _list(details.get("tokens")), _list(details.get("token_logprobs"))
    tops = _list(details.get("top_logprobs"))
    for at, text in enumerate(texts):
        found = tops[at] if at < len(tops) else None
        pairs = found.items() if isinstance(found, dict) else ()
        likeliest = tuple((whole(t), v) for t, each in pairs if (v := _number(each)) is not None)
        yield Token(whole(text), None, _number(values[at]) if at < len(values) else None, likeliest)
