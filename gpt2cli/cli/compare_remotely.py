"""`compare` with a model on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2cli.cli.generate_remotely import engine_document, warn_of
from gpt2cli.cli.remote import Place
from gpt2cli.core.results import Choice, Result, Stats
from gpt2cli.core.sampling import TokenLogprobs
from gpt2cli.options import GenerateOptions
from gpt2cli.remote.asking import Request, SentOptions, sent_options
from gpt2cli.remote.client import Client
from gpt2cli.remote.pieces import Text
from gpt2cli.terminal.streams import Terminal


class RemoteWriter:
    """Continues prompts by a `Client` that is connected."""

    tokenizer = None

    def __init__(self, client: Client) -> None:
        self.client = client

    def document(self) -> dict[str, Any]:
        """What ran."""
        return engine_document(self.client)

    def options(self, **given: Any) -> SentOptions:
        """Options to send; log-probabilities are asked for where a server is known to tell them."""
        if not self.client.kind.token_ids:
            given = {name: value for name, value in given.items() if name != "logprobs"}
        return sent_options(given)

    def generate(self, prompt: str, options: GenerateOptions) -> Result:
        """As `Engine.generate`. Raises `Gpt2cliError`."""
        options = options.settled()
        given = options.given if isinstance(options, SentOptions) else frozenset[str]()
        texts = [Text(index, seed) for index, seed in enumerate(options.seeds)]
        stream = self.client.stream(Request(prompt, options, given))
        for piece in stream:
            texts[piece.sequence].add(piece)
        if stream.error is not None:
            raise stream.error
        read, drawn = stream.usage.prompt_tokens or 0, stream.usage.completion_tokens or 0
        stats = Stats(read, drawn, 0, 0, 0.0, 0.0, 0.0, None, 0, 0, 0)
        return Result(tuple(map(_choice, texts)), options, stats)


def remote_writer(terminal: Terminal, place: Place, settings: Sequence[Mapping[str, Any]]) -> RemoteWriter:
    """The model of a server that knows all options of ``settings``. Raises `Gpt2cliError`."""
    client = place.client(terminal.note)
    warn_of(terminal, client, frozenset(name for given in settings for name in given))
    return RemoteWriter(client)


def _choice(text: Text) -> Choice:
    ids = [token.id for token in text.tokens if token.id is not None]
    values = [token.logprob for token in text.tokens if token.logprob is not None]
    whole = len(values) == len(text.tokens)
    details = [TokenLogprobs(value) for value in values] if whole else []
    return Choice(text.index, text.seed, text.text, ids, details, text.finish_reason)
