"""A request: what the user wants, as the body that a server reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2cli.options import GenerateOptions
from gpt2cli.remote.pieces import Json
from gpt2cli.remote.servers import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class SentOptions(GenerateOptions):
    """Options, and which of them were set: the others are the server's affair."""

    given: frozenset[str] = frozenset()


def sent_options(given: Mapping[str, Any]) -> SentOptions:
    """Options of which those ``given`` are sent. Raises `InvalidOption`."""
    names = {name for name, value in given.items() if value not in (None, ())}
    return SentOptions(**given, given=frozenset(names - {"num_return_sequences"}))


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody said in a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, or the messages of a conversation, and how it is to be continued.

    ``options`` have a seed and a length. ``given`` are the names of those that the user set: the others are
    the server's affair and are not sent.
    """

    prompt: str | tuple[Message, ...]
    options: GenerateOptions
    given: frozenset[str] = field(default_factory=frozenset)

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return not isinstance(self.prompt, str)

    @property
    def path(self) -> str:
        """Where it is sent."""
        return "/chat/completions" if self.is_chat else "/completions"

    def body(self, kind: Kind, model: str, *, n: int, seed: int | None) -> bytes:
        """JSON for a server of a ``kind``: ``n`` texts, the first of which has ``seed``."""
        body: dict[str, Json] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if isinstance(self.prompt, str):
            body["prompt"] = self.prompt
        else:
            body["messages"] = [{"role": each.role, "content": each.content} for each in self.prompt]
        for name in sorted((self.given | {"max_new_tokens", "seed"}) & kind.names.keys()):
            self._add(body, name, kind.names[name])
            body.update(kind.beside.get(name, {}))
        body["seed"] = seed
        if n > 1:
            body["n"] = n
        if kind.token_ids:
            body["return_token_ids"] = True
        return json.dumps(body).encode("ascii")

    def _add(self, body: dict[str, Json], name: str, field: str) -> None:
        if name == "logit_bias":
            body[field] = {str(token): bias for token, bias in self.options.logit_bias}
        elif name == "logprobs" and self.is_chat:
            if self.options.logprobs is not None:
                body["logprobs"] = True
                if self.options.logprobs:
                    body["top_logprobs"] = self.options.logprobs
        elif name == "stop":
            body[field] = list(self.options.stop)
        else:
            body[field] = getattr(self.options, name)
