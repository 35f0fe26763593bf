"""A model on a server, as a conversation sees it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from gpt2cli.core.results import Chunk, Stats
from gpt2cli.errors import PromptTooLong, UsageError
from gpt2cli.options import DEFAULT_MAX_NEW_TOKENS, GenerateOptions
from gpt2cli.remote.asking import Message, Request, SentOptions, sent_options
from gpt2cli.remote.client import Client, Stream
from gpt2cli.remote.pieces import Piece
from gpt2cli.remote.servers import OURS, check_options
from gpt2cli.remote.wire import Stop, Stopped
from gpt2cli.repl.remote_format import CODES, Characters, messages_of
from gpt2cli.text.parts import TextPart
from gpt2cli.text.sanitize import one_line

CHARACTERS_A_TOKEN = 3.0
"""What is supposed before the server has counted any; few for English."""
LEAST_COUNTED = 32
"""Tokens that tell how many characters a token has."""
NO_LIMIT = 2**20


class RemoteSpeaker:
    """Answers by a `Client` that is connected. Its tokens are characters (`gpt2cli.repl.remote_format`).

    How many of them the context holds is estimated from what the server counts. ``warn`` is told, once, of
    options that the server may ignore.
    """

    def __init__(self, client: Client, warn: Callable[[str], None]) -> None:
        self.client, self.warn = client, warn
        self.tokenizer = Characters()
        self.vocab_size = CODES
        self._stop = Stop()
        self._warned: set[str] = set()
        self._ratio = CHARACTERS_A_TOKEN
        self._reserve = DEFAULT_MAX_NEW_TOKENS

    @property
    def name(self) -> str:
        """The address with the model."""
        return f"{self.client.url}#{self.client.model.name}"

    @property
    def about(self) -> str:
        """What runs, and where."""
        kind = f" ({self.client.kind.name})" if self.client.kind.known else ""
        return one_line(f"{self.client.model.name} at {self.client.url}{kind}")

    @property
    def chats(self) -> bool:
        """Whether the model was taught to chat, as far as can be known."""
        return not (self.client.kind is OURS and self.client.model.chat_format == "transcript")

    @property
    def config(self) -> RemoteSpeaker:
        """It has ``n_positions`` and ``vocab_size``."""
        return self

    @property
    def n_positions(self) -> int:
        """About how many characters there is room for."""
        context = self.client.model.context
        if context is None:
            return NO_LIMIT
        return max(2, int((context - min(self._reserve, context // 2)) * self._ratio))

    def options(self, **given: Any) -> GenerateOptions:
        """Options to send. Raises `UsageError` for one that the server has not, and `InvalidOption`."""
        options = sent_options({n: value for n, value in given.items() if n not in ("draft", "logprobs")})
        for flag in check_options(self.client.kind, sorted(options.given)):
            if flag not in self._warned:
                self._warned.add(flag)
                self.warn(f"{self.client.url} may ignore {flag}: it is not of OpenAI's API")
        self._reserve = options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return options

    def encode(self, prompt: str, *, continues: bool = False) -> list[int]:
        """The code points of a text."""
        return self.tokenizer.encode(prompt)

    def encode_parts(self, parts: Sequence[TextPart], *, continues: bool = False) -> list[int]:
        """Those of all parts."""
        return [each for part in parts for each in self.tokenizer.encode(part.text)]

    def stream(
        self, prompt: Sequence[int], options: GenerateOptions | None = None
    ) -> Generator[Chunk, None, None]:
        """As `Engine.stream`; the request is sent now. Raises `Gpt2cliError`."""
        options = options or self.options()
        given = options.given if isinstance(options, SentOptions) else frozenset[str]()
        messages = tuple(Message(role, text) for role, text in messages_of(prompt))
        if messages and messages[-1].role == "assistant":
            if messages[-1].content:
                raise UsageError(
                    "a server that lays turns out itself cannot go on with an answer",
                    hint="/regen draws it again, and in /format story an answer can be gone on with",
                )
            messages = messages[:-1]
        sent = messages or "".join(map(chr, prompt))
        self._stop = Stop()
        try:
            stream = self.client.stream(Request(sent, options.settled(), given), self._stop)
        except Stopped:
            return _nothing(options)
        except PromptTooLong as error:
            self._ratio = max(0.5, self._ratio / 2)
            error.hint = "send it again: then the oldest turns are dropped; or send a shorter message"
            raise
        return self._chunks(stream, len(prompt))

    def interrupt(self) -> None:
        """End the open stream; safe to call from a signal handler."""
        self._stop.set()

    def _chunks(self, stream: Stream, characters: int) -> Generator[Chunk, None, None]:
        drawn = 0
        try:
            for piece in stream:
                drawn += len(piece.text)
                yield from _chunk(piece)
        finally:
            stream.close()
        counted = (stream.usage.prompt_tokens or 0) + (stream.usage.completion_tokens or 0)
        if counted >= LEAST_COUNTED:
            self._ratio = min(16.0, max(0.5, (characters + drawn) / counted))
        yield Chunk(0, stats=_stats(stream))
        if stream.error is not None:
            raise stream.error


def _chunk(piece: Piece) -> Generator[Chunk, None, None]:
    """A piece as chunks: that there is a token is known from its text, and its id is nobody's affair."""
    if piece.text:
        yield Chunk(piece.sequence, piece.text, token=ord(piece.text[0]))
    if piece.finish_reason is not None:
        yield Chunk(piece.sequence, finish_reason=piece.finish_reason)


def _nothing(options: GenerateOptions) -> Generator[Chunk, None, None]:
    """The stream of a request that was stopped before there was an answer."""
    for index in range(options.num_return_sequences):
        yield Chunk(index, finish_reason="interrupted")
    yield Chunk(0, stats=Stats(0, 0, 0, 0, 0.0, 0.0, 0.0, None, 0, 0, 0))


def _stats(stream: Stream) -> Stats:
    first = stream.first_token_s or 0.0
    drawn = stream.usage.completion_tokens or 0
    decode_s = stream.total_s - first if stream.first_token_s is not None else 0.0
    return Stats(
        prompt_tokens=stream.usage.prompt_tokens or 0,
        completion_tokens=drawn,
        dropped_tokens=0,
        cached_tokens=stream.usage.cached_tokens or 0,
        prefill_s=first,
        first_token_s=first,
        decode_s=decode_s,
        tokens_per_s=stream.tokens_per_s,
        steps=0,
        drafted=0,
        accepted=0,
    )
