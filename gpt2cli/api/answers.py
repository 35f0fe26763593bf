"""From what the worker sends to what the client reads: what all answers of generated text share."""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2cli import __version__
from gpt2cli.api.parts import Ended, Event, Scored, Text
from gpt2cli.api.reading import Request
from gpt2cli.core.results import Chunk
from gpt2cli.core.sampling import TokenLogprobs
from gpt2cli.text.tokenizer import Tokenizer

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "interrupted": "length"}
"""Our reasons in OpenAI's two words; ours are in ``stop_reason``."""
AT_ONCE = 256
"""Tokens or texts of an answer that are written in the event loop: about a millisecond."""
IMPOSSIBLE = -9999.0
"""Stands for the log-probability of what cannot be: JSON has no infinity."""


def dumps(document: Mapping[str, Any]) -> bytes:
    """ASCII JSON on one line."""
    return encode(document)


def encode(value: Any) -> bytes:
    """The same of any value."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def dumps_long(document: Mapping[str, Any], name: str, each: int = 1) -> bytes:
    """The same with the list ``name`` written ``each`` elements at a time: json lets no other thread run
    before it is done.
    """
    elements: Sequence[Any] = document[name]
    pieces = (encode(elements[at : at + each])[1:-1] for at in range(0, len(elements), each))
    empty = f'"{name}":['.encode()
    return dumps({**document, name: []}).replace(empty, empty + b",".join(pieces), 1)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as the API writes it; bytes that are no text as ``bytes:\\xe2\\x80``, so that all differ."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if logprob > IMPOSSIBLE else IMPOSSIBLE


class Offsets:
    """Where each token begins in the text, in characters. The first ``silent`` tokens are not in the text.

    With ``begins`` the text begins with the first token that is in it, which may lose a space by that.
    """

    def __init__(self, tokenizer: Tokenizer, silent: int = 0, *, begins: bool = False) -> None:
        self._tokenizer, self._silent = tokenizer, silent
        self._begins = begins and not tokenizer.byte_level
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def next(self, token: int) -> int:
        """The place of ``token``; of one that only goes on with a character, that of the next."""
        at = self._at
        if self._silent:
            self._silent -= 1
            return at
        if token in self._tokenizer.hidden:
            return at
        data = self._tokenizer.token_bytes(token)
        if self._begins:
            self._begins = False
            first = self._tokenizer.decode([token]).encode()
            data = first if data.endswith(first) else data
        text = self._utf8.decode(data)
        self._at += len(text)
        try:
            # Bytes before it that are no character have become one only now.
            return self._at - len(data.decode("utf-8"))
        except UnicodeDecodeError:
            return at


@dataclass
class State:
    """One text while it comes. ``logprobs`` are those of ``ids``."""

    index: int
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    begun: bool = False

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk."""
        self.text.append(chunk.text)
        if chunk.token is not None:
            self.ids.append(chunk.token)
        if chunk.logprobs is not None:
            self.logprobs.append(chunk.logprobs)
        self.finish_reason = chunk.finish_reason or self.finish_reason

    @property
    def mean_logprob(self) -> float:
        """By which the best of several are chosen; a text without a token is the worst."""
        values = [detail.logprob for detail in self.logprobs]
        return sum(values) / len(values) if values else float("-inf")


class Answer:
    """What is said in answer to a `Request`, as chunks of a stream or as a whole."""

    object = chunk_object = prefix = ""

    def __init__(self, request: Request, name: str | None = None) -> None:
        """``name`` is what the answer's id ends with; any without it."""
        self.request = request
        self.states = [State(index) for index in range(len(request.prompts) * request.texts)]
        self.scores: dict[int, Sequence[TokenLogprobs]] = {}
        self._early: dict[int, list[Text]] = {}
        self.cached = 0
        self.left = len(request.parts)
        self._head = {
            "id": f"{self.prefix}-{name or secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model.name,
            "system_fingerprint": f"gpt2cli-{__version__}-{request.model.ready.info.precision}",
        }

    @property
    def done(self) -> bool:
        """Whether all texts have ended."""
        return not self.left

    @property
    def long(self) -> bool:
        """Whether the whole takes a while to write."""
        listed = len(self.states) if self.request.logprobs is None else sum(len(s.ids) for s in self.states)
        return listed + (self._echoed if self.request.logprobs is not None else 0) > AT_ONCE

    def begins_long(self, event: Event) -> bool:
        """Whether an event's chunk begins with a prompt and its log-probabilities, which takes a while."""
        if not self.request.stream or self.request.logprobs is None or self._echoed <= AT_ONCE:
            return False
        return isinstance(event, Scored) or (isinstance(event, Text) and not self.states[event.index].begun)

    @property
    def _echoed(self) -> int:
        """The tokens of prompts that are in the answer."""
        return self.request.texts * sum(len(p.ids) for p in self.request.prompts) if self.request.echo else 0

    def take(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that an event makes."""
        if isinstance(event, Scored):
            self.scores[event.prompt] = event.scores
            for early in self._early.pop(event.prompt, ()):
                yield from self.take(early)
        elif isinstance(event, Ended):
            self.left -= 1
            if event.stats is not None and event.first % self.request.texts == 0:
                self.cached += event.stats.cached_tokens
        elif isinstance(event, Text) and self._too_early(event):
            self._early.setdefault(event.index // self.request.texts, []).append(event)
        elif isinstance(event, Text):
            state = self.states[event.index]
            state.add(event.chunk)
            if self.request.stream:
                for choice in self.deltas(state, event.chunk):
                    yield self.document([choice], chunk=True)
            state.begun = True

    def _too_early(self, event: Text) -> bool:
        """Whether a text comes before the scores of its prompt, which another part reads."""
        request = self.request
        scored = request.echo and request.logprobs is not None
        return scored and event.index // request.texts not in self.scores

    def deltas(self, state: State, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """What a chunk adds to its choice."""
        raise NotImplementedError

    def choice(self, state: State, index: int) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    def document(self, choices: Sequence[Mapping[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """A chunk of the stream, or the whole answer."""
        document = {"object": self.chunk_object if chunk else self.object, **self._head, "choices": choices}
        if chunk and self.request.include_usage:
            document["usage"] = None
        return document

    def last(self) -> dict[str, Any]:
        """The last chunk of a stream whose reader wants to know the usage."""
        return {**self.document([], chunk=True), "usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The whole answer: of each prompt the best texts, or all."""
        request, choices = self.request, []
        for prompt in range(len(request.prompts)):
            states = self.states[prompt * request.texts : (prompt + 1) * request.texts]
            if request.texts > request.n:
                states = sorted(states, key=lambda state: -state.mean_logprob)[: request.n]
            choices += [self.choice(state, prompt * request.n + rank) for rank, state in enumerate(states)]
        return {**self.document(choices, chunk=False), "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """How many tokens were read and drawn."""
        read = sum(len(prompt.ids) for prompt in self.request.prompts)
        drawn = sum(len(state.ids) for state in self.states)
        return {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def ending(self, state: State) -> dict[str, Any]:
        """Why a text has ended, and its seed."""
        reason = state.finish_reason
        return {
            "finish_reason": None if reason is None else FINISH[reason],
            "stop_reason": reason,
            "seed": self.request.seed_of(state.index),
        }
