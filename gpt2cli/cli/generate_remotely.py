"""`generate` with a model on a server: pieces in, text or JSON out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gpt2cli.cli.clock import process_age
from gpt2cli.cli.remote import Place
from gpt2cli.cli.run_log import RunKeeper
from gpt2cli.cli.sinks import Collected, OutputOptions, Run, Shown, file_target, text_sink
from gpt2cli.options import GenerateOptions
from gpt2cli.remote.asking import Request
from gpt2cli.remote.client import Client, Stream
from gpt2cli.remote.pieces import Piece, Text, Token
from gpt2cli.remote.servers import check_options, check_sendable
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import Sanitizer, one_line

IMPOSSIBLE = -9999.0
"""What servers write for the log-probability of what cannot be."""


class Sink(Protocol):
    """Where pieces go."""

    def chunk(self, chunk: Piece) -> None: ...
    def finish(self, choices: Sequence[Text], tail: Mapping[str, Any]) -> None: ...


def run(
    terminal: Terminal,
    place: Place,
    prompt: str,
    given: Mapping[str, Any],
    output: OutputOptions,
    keeper: RunKeeper,
) -> None:
    """Have the server continue ``prompt``, as the options ``given`` say. Raises `Gpt2cliError`, and what a
    signal asked for.
    """
    options = GenerateOptions(**given).settled()
    names = frozenset(given) - {"num_return_sequences", *(() if options.logit_bias else ("logit_bias",))}
    check_sendable(sorted(names))
    client = place.client(terminal.note)
    warn_of(terminal, client, names)
    age = process_age()
    stream = client.stream(Request(prompt, options, names))
    # From here on there is text to lose.
    terminal.signals.soften(stream.interrupt)
    head = Head(client, prompt, options, names)
    sink = _sink(terminal, head, output)
    texts = tuple(Text(index, seed) for index, seed in enumerate(options.seeds))
    cleaners = [Sanitizer() if output.sanitize else None for _ in texts]
    drawn = tuple(Text(index, seed) for index, seed in enumerate(options.seeds))
    try:
        for piece in stream:
            drawn[piece.sequence].add(piece)
            if (cleaner := cleaners[piece.sequence]) is not None:
                piece = replace(piece, text=cleaner.push(piece.text))
            texts[piece.sequence].add(piece)
            sink.chunk(piece)
        terminal.signals.soften(lambda: None)
        sink.finish(texts, _tail(stream, head, age))
        _report(terminal, head, texts, stream, output)
    finally:
        tail = _tail(stream, head, age)
        name = f"{client.url}#{client.model.name}"
        usage, timings = tail["usage"], tail["timings"]
        keeper.keep_remote("generate", name, prompt, options, drawn, usage=usage, timings=timings)
    if terminal.signals.received is not None:
        raise terminal.signals.received
    if stream.error is not None:
        raise stream.error


def warn_of(terminal: Terminal, client: Client, names: frozenset[str]) -> None:
    """Say which options the server may ignore. Raises `UsageError` for one that it does not know."""
    doubtful = check_options(client.kind, sorted(names))
    if doubtful:
        terminal.warn(f"{client.url} may ignore {', '.join(doubtful)}: they are not of OpenAI's API")


@dataclass(frozen=True, slots=True)
class Head:
    """What is known before the first token."""

    client: Client
    prompt: str
    options: GenerateOptions
    names: frozenset[str]

    def document(self) -> dict[str, Any]:
        """The first fields of the document, and the ``start`` event; ``options`` are those that were sent."""
        names = sorted((self.names | {"max_new_tokens"}) - {"seed"})
        if self.options.num_return_sequences > 1:
            names.append("num_return_sequences")
        return {
            "model": self.client.model.name,
            "revision": None,
            "prompt": self.prompt,
            "seed": self.options.seed,
            "rng": None,
            "options": {name: getattr(self.options, name) for name in names},
        }

    def engine(self) -> dict[str, Any]:
        """What ran."""
        return engine_document(self.client)


def engine_document(client: Client) -> dict[str, Any]:
    """What runs at a server, as far as it is known: its address and its kind."""
    return {
        "device": "server",
        "precision": None,
        "kernels": None,
        "threads": None,
        "cache": None,
        "endpoint": client.url,
        "server": client.kind.name if client.kind.known else None,
    }


def _sink(terminal: Terminal, head: Head, output: OutputOptions) -> Sink:
    target = file_target(output)
    if output.json:
        return JsonSink(terminal, head, target)
    if output.jsonl:
        return JsonlSink(terminal, head, target)
    sink: Any = text_sink(terminal, Run({}, head.prompt, head.options, {}), output, target)
    return _TextSink(sink)


class _TextSink:
    """Texts, as `generate` has them of any model."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def chunk(self, chunk: Shown) -> None:
        self._sink.chunk(chunk)

    def finish(self, choices: Sequence[Text], tail: Mapping[str, Any]) -> None:
        self._sink.finish((), tail)


class JsonSink:
    """One document at the end."""

    def __init__(self, terminal: Terminal, head: Head, target: Collected | None) -> None:
        self._head, self._target = head, target
        self._write = target.write if target else terminal.write

    def chunk(self, chunk: Piece) -> None:
        pass

    def finish(self, choices: Sequence[Text], tail: Mapping[str, Any]) -> None:
        most = self._head.options.logprobs
        self._end({**self._head.document(), "choices": [choice_document(c, most) for c in choices], **tail})

    def _end(self, document: Mapping[str, Any]) -> None:
        self._write(json_line(document))
        if self._target:
            self._target.close()


class JsonlSink(JsonSink):
    """Events: ``start``, a ``token`` for each piece of a text, an ``end`` for each text, ``summary``."""

    def __init__(self, terminal: Terminal, head: Head, target: Collected | None) -> None:
        super().__init__(terminal, head, target)
        self._write(json_line({"event": "start", **head.document(), "engine": head.engine()}))

    def chunk(self, chunk: Piece) -> None:
        ends = chunk.finish_reason is not None
        held = chunk.text if ends and not chunk.tokens else ""
        tokens = chunk.tokens or ((Token(),) if chunk.text and not ends else ())
        for number, token in enumerate(tokens, 1):
            # A server may send several tokens in one piece: its text comes with the last.
            text = chunk.text if number == len(tokens) else ""
            event: dict[str, Any] = {
                "event": "token",
                "index": chunk.sequence,
                "token_id": token.id,
                "text": text,
            }
            if self._head.options.logprobs is not None:
                event.update(token_document(token, self._head.options.logprobs))
            self._write(json_line(event))
        if ends:
            self._write(
                json_line(
                    {
                        "event": "end",
                        "index": chunk.sequence,
                        "seed": self._head.options.seeds[chunk.sequence],
                        "text": held,
                        "finish_reason": chunk.finish_reason,
                    }
                )
            )

    def finish(self, choices: Sequence[Text], tail: Mapping[str, Any]) -> None:
        self._end({"event": "summary", **tail})


def choice_document(choice: Text, logprobs: int | None) -> dict[str, Any]:
    """A text as ``--json`` has it; ``token_ids`` is null where the server does not tell them all."""
    ids = [token.id for token in choice.tokens]
    told = bool(ids) and None not in ids
    details = [token_document(token, logprobs) for token in choice.tokens if token.text is not None]
    return {
        "index": choice.index,
        "seed": choice.seed,
        "text": choice.text,
        "token_ids": ids if told else None,
        "logprobs": details if logprobs is not None and details else None,
        "finish_reason": choice.finish_reason,
    }


def token_document(token: Token, most: int | None) -> dict[str, Any]:
    """A token's log-probability and those of the ``most`` likeliest ones, by their texts."""
    likeliest = sorted(token.top, key=lambda pair: -pair[1])[: most or 0]
    top = [{"token_id": None, "token": text, "logprob": _finite(value)} for text, value in likeliest]
    return {
        "token_id": token.id,
        "token": token.text,
        "logprob": _finite(token.logprob),
        "top_logprobs": top,
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None or logprob <= IMPOSSIBLE else logprob


def _tail(stream: Stream, head: Head, age: float) -> dict[str, Any]:
    """The last fields of the document, and the ``summary`` event."""
    usage, first = stream.usage, stream.first_token_s
    rate = stream.tokens_per_s
    decode_s = 0.0 if first is None else stream.total_s - first
    tail: dict[str, Any] = {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "dropped_tokens": 0,
        },
        "speculation": None,
        "timings": {
            "import_s": None,
            "load_s": None,
            "prefill_s": None,
            "first_token_s": None if first is None else round(age + first, 4),
            "decode_s": round(decode_s, 4),
            "tokens_per_s": None if rate is None else round(rate, 2),
        },
        "engine": head.engine(),
    }
    if stream.error is not None:
        tail["error"] = str(stream.error)
    return tail


def _report(
    terminal: Terminal, head: Head, texts: Sequence[Text], stream: Stream, output: OutputOptions
) -> None:
    """Say on stderr what the text does not show: a full context, the seed."""
    if any(text.finish_reason == "context" for text in texts):
        context = head.client.model.context
        of = f" of {context} tokens" if context else ""
        terminal.warn(f"the text ends where the context{of} does")
    if output.json or output.jsonl:
        return
    parts = [] if head.options.greedy and "temperature" in head.names else [f"seed {head.options.seed}"]
    if terminal.stderr_is_terminal:
        if stream.usage.completion_tokens is not None:
            parts.append(f"{stream.usage.completion_tokens} tokens")
        if stream.tokens_per_s is not None:
            parts.append(f"{stream.tokens_per_s:.1f} tokens/s")
        parts.append(", ".join(dict.fromkeys(one_line(str(text.finish_reason)) for text in texts)))
        parts.append(one_line(head.client.model.name)[:60])
    if parts:
        terminal.note(" · ".join(parts))
