"""What `generate` puts out: text, one JSON document, or JSON events. A sink takes chunks as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt2cli.errors import UsageError
from gpt2cli.files import write_atomically
from gpt2cli.terminal.blocks import Blocks
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import sanitize

if TYPE_CHECKING:
    from gpt2cli.core.results import Choice, Chunk
    from gpt2cli.core.sampling import TokenLogprobs
    from gpt2cli.options import GenerateOptions
    from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """The flags of the panel "Output". Raises `UsageError` for what does not go together."""

    json: bool = False
    jsonl: bool = False
    echo: bool = False
    stream: bool = True
    sanitize: bool = False
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.json and self.jsonl:
            raise UsageError("--json and --jsonl do not go together")
        if self.echo and (self.json or self.jsonl):
            raise UsageError("--echo is for text; the JSON has the prompt anyway")


@dataclass(frozen=True, slots=True)
class Run:
    """What is known before the first token."""

    model: Mapping[str, Any]
    """The fields ``model`` and ``revision``."""
    prompt: str
    options: GenerateOptions
    engine: Mapping[str, Any]

    def head(self) -> dict[str, Any]:
        """The first fields of the document, and the ``start`` event."""
        options = asdict(self.options)
        return {
            **self.model,
            "prompt": self.prompt,
            "seed": options.pop("seed"),
            "rng": options.pop("rng"),
            "options": options,
        }


class Sink(Protocol):
    """Where chunks go."""

    def chunk(self, chunk: Chunk) -> None:
        """One chunk, its text already sanitised where that is asked for."""
        ...

    def finish(self, choices: Sequence[Choice], tail: Mapping[str, Any]) -> None:
        """All choices, and the fields ``usage``, ``speculation``, ``timings`` and ``engine``."""
        ...


def make_sink(terminal: Terminal, run: Run, output: OutputOptions, tokenizer: Tokenizer | None) -> Sink:
    """The sink that the flags ask for, over stdout or a file."""
    target = file_target(output)
    write = target.write if target else terminal.write
    if output.json:
        return JsonSink(write, run, tokenizer, target)
    if output.jsonl:
        return JsonlSink(write, run, tokenizer, target).start()
    return text_sink(terminal, run, output, target)


def file_target(output: OutputOptions) -> Collected | None:
    """What collects for ``--output FILE``; None for stdout."""
    path = output.file
    return Collected(lambda text: write_atomically(path, text)) if path else None


def text_sink(terminal: Terminal, run: Run, output: OutputOptions, target: Collected | None) -> TextSink:
    """The sink of texts."""
    write = target.write if target else terminal.write
    on_terminal = target is None and terminal.stdout_is_terminal
    heads = _heads(terminal, run, output, on_terminal=on_terminal)
    if not output.stream and target is None:
        target = Collected(terminal.write)
        write = target.write
    blocks = Blocks(write, heads, safe=on_terminal)
    return TextSink(blocks, target)


def _heads(terminal: Terminal, run: Run, output: OutputOptions, *, on_terminal: bool) -> list[str]:
    """What stands before each text: a header or a rule where there are several, and the prompt."""
    seeds = run.options.seeds
    prompt = sanitize(run.prompt) if on_terminal or output.sanitize else run.prompt
    prompt = terminal.dim(prompt) if on_terminal else prompt if output.echo else ""
    heads = []
    for i, seed in enumerate(seeds):
        above = ""
        if len(seeds) > 1 and on_terminal:
            above = terminal.dim(f"=== {i + 1}/{len(seeds)} seed {seed} ===") + "\n"
        elif i > 0:
            above = "---\n"
        heads.append(above + prompt)
    return heads


class Collected:
    """Collects what is written, and hands it all to ``done`` at the end."""

    def __init__(self, done: Callable[[str], None]) -> None:
        self._done = done
        self._parts: list[str] = []

    def write(self, text: str) -> None:
        """Collect."""
        self._parts.append(text)

    def close(self) -> None:
        """Hand it over."""
        self._done("".join(self._parts))


class Shown(Protocol):
    """What a text is shown by: more of it, or its end."""

    @property
    def sequence(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str | None: ...


class TextSink:
    """Texts, one block after the other."""

    def __init__(self, blocks: Blocks, target: Collected | None) -> None:
        self._blocks, self._target = blocks, target

    def chunk(self, chunk: Shown) -> None:
        self._blocks.push(chunk.sequence, chunk.text)
        if chunk.finish_reason is not None:
            self._blocks.end(chunk.sequence)

    def finish(self, choices: Sequence[Choice], tail: Mapping[str, Any]) -> None:
        if self._target:
            self._target.close()


class JsonSink:
    """One document at the end."""

    def __init__(
        self,
        write: Callable[[str], None],
        run: Run,
        tokenizer: Tokenizer | None,
        target: Collected | None,
    ) -> None:
        self._write, self._run, self._tokenizer, self._target = write, run, tokenizer, target

    def chunk(self, chunk: Chunk) -> None:
        pass

    def finish(self, choices: Sequence[Choice], tail: Mapping[str, Any]) -> None:
        documents = [choice_document(choice, self._tokenizer) for choice in choices]
        self._end({**self._run.head(), "choices": documents, **tail})

    def _end(self, document: Mapping[str, Any]) -> None:
        self._write(json_line(document))
        if self._target:
            self._target.close()


class JsonlSink(JsonSink):
    """Events: ``start``, a ``token`` for each token, an ``end`` for each choice, ``summary``."""

    def start(self) -> JsonlSink:
        """Put out the first event."""
        self._write(json_line({"event": "start", **self._run.head(), "engine": self._run.engine}))
        return self

    def chunk(self, chunk: Chunk) -> None:
        if chunk.token is not None:
            event: dict[str, Any] = {
                "event": "token",
                "index": chunk.sequence,
                "token_id": chunk.token,
                "text": chunk.text,
            }
            if chunk.drafted:
                event["drafted"] = True
            if chunk.logprobs is not None:
                event.update(logprobs_document(chunk.token, chunk.logprobs, self._tokenizer))
            self._write(json_line(event))
        if chunk.finish_reason is not None:
            # The text of an end event is what the last tokens had held back.
            self._write(
                json_line(
                    {
                        "event": "end",
                        "index": chunk.sequence,
                        "seed": self._run.options.seeds[chunk.sequence],
                        "text": chunk.text,
                        "finish_reason": chunk.finish_reason,
                    }
                )
            )

    def finish(self, choices: Sequence[Choice], tail: Mapping[str, Any]) -> None:
        self._end({"event": "summary", **tail})


def choice_document(choice: Choice, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A choice as ``--json`` has it."""
    pairs = zip(choice.token_ids, choice.logprobs, strict=False)
    logprobs = [logprobs_document(token, detail, tokenizer) for token, detail in pairs]
    return {
        "index": choice.index,
        "seed": choice.seed,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "logprobs": logprobs if choice.logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def logprobs_document(token: int, detail: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """One token's log-probability and those of the likeliest ones, before filtering."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token_id]) if tokenizer else None
        return {"token_id": token_id, "token": text, "logprob": _finite(logprob)}

    return {**entry(token, detail.logprob), "top_logprobs": [entry(*pair) for pair in detail.top]}


def _finite(logprob: float) -> float | None:
    """JSON has no infinity: a token of probability 0 has no log-probability."""
    return logprob if logprob > float("-inf") else None
