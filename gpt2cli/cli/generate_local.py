"""What ``generate`` does once its command line is in order, with a model on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.clock import process_age
from gpt2cli.cli.loading import FoundModel, import_engine, load_engine
from gpt2cli.cli.run_log import RunKeeper
from gpt2cli.cli.sinks import OutputOptions, Run, make_sink
from gpt2cli.options import GenerateOptions
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import Sanitizer

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Choice, Chunk, Stats


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A command line that was found to be in order, the model's files included; nothing is loaded yet."""

    terminal: Terminal
    model: FoundModel
    draft: FoundModel | None
    prompt: str
    options: GenerateOptions
    output: OutputOptions
    keeper: RunKeeper
    prompt_ids: tuple[int, ...] | None = None
    """What the model is given instead of the prompt's own tokens."""
    limits: Mapping[int, int] = field(default_factory=dict)
    """The tokens after which a text ends as if it was interrupted there, by its number."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What flags and settings say of the options."""


def run(request: GenerateRequest) -> None:
    """Load the model, pass its chunks on, and report. Raises what a signal asked for, at the end."""
    engine, import_s = load(request)
    answer(request, engine, import_s, process_age())


def load(request: GenerateRequest) -> tuple[Engine, float]:
    """The engine, and how many seconds its import took."""
    terminal = request.terminal
    started = time.perf_counter()
    import_engine(terminal)
    import_s = time.perf_counter() - started
    engine = load_engine(terminal, request.model)
    if request.draft is not None:
        small = load_engine(terminal, request.draft)
        engine.draft_with(small)
        engine.load_s += small.load_s
    return engine, import_s


def answer(
    request: GenerateRequest,
    engine: Engine,
    import_s: float,
    age: float,
    head: Mapping[str, Any] | None = None,
) -> None:
    """Draw the texts, pass their chunks on, and report. ``head`` stands before the document's first fields.

    Raises what a signal asked for, at the end.
    """
    from gpt2cli.core.results import new_choices

    terminal, options = request.terminal, request.options
    chunks = chunks_of(request, engine)
    # From here on there is something to end properly.
    terminal.signals.soften(engine.interrupt)
    document = Run({**(head or {}), **request.model.head()}, request.prompt, options, asdict(engine.info))
    sink = make_sink(terminal, document, request.output, engine.tokenizer)
    choices, drawn = new_choices(options), new_choices(options)
    cleaners = [Sanitizer() if request.output.sanitize else None for _ in choices]
    stats, tail = None, None
    try:
        for chunk in chunks:
            drawn[chunk.sequence].add(chunk)
            if (cleaner := cleaners[chunk.sequence]) is not None:
                chunk = replace(chunk, text=cleaner.push(chunk.text))
            choices[chunk.sequence].add(chunk)
            sink.chunk(chunk)
            stats = chunk.stats
        assert stats is not None
        # A first signal that comes only now must not tear what is being written.
        terminal.signals.soften(lambda: None)
        tail = _tail(engine, stats, import_s, age)
        sink.finish(choices, tail)
        _report(request, choices, stats)
    finally:
        _keep(request, engine, drawn, chunks, stats, tail["timings"] if tail else None)
    if terminal.signals.received is not None:
        raise terminal.signals.received


def chunks_of(request: GenerateRequest, engine: Engine) -> Iterator[Chunk]:
    """What the engine draws. Raises what `Engine.stream` raises."""
    prompt = request.prompt if request.prompt_ids is None else request.prompt_ids
    chunks = engine.stream(prompt, request.options)
    if not request.limits:
        return chunks
    from gpt2cli.runs.cut import cut

    ids, _, _ = engine.prepare(prompt, request.options)
    return cut(chunks, request.limits, engine, ids, request.options)


def _keep(
    request: GenerateRequest,
    engine: Engine,
    drawn: Sequence[Choice],
    chunks: Iterator[Chunk],
    stats: Stats | None,
    timings: Mapping[str, Any] | None,
) -> None:
    """Keep the run where runs are kept, also one whose reader has left."""
    keeper = request.keeper
    if not keeper.on:
        return
    if stats is None:
        engine.interrupt()
        for chunk in chunks:
            drawn[chunk.sequence].add(chunk)
            stats = chunk.stats
    keeper.met(request.model.resolved)
    keeper.keep("generate", engine, request.prompt, request.options, drawn, stats, timings=timings)
    keeper.close()


def _tail(engine: Engine, stats: Stats, import_s: float, age: float) -> dict[str, Any]:
    """The last fields of the document, and the ``summary`` event. ``age`` is the process's at the prompt."""
    return {
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "dropped_tokens": stats.dropped_tokens,
        },
        "speculation": {"steps": stats.steps, "drafted": stats.drafted, "accepted": stats.accepted},
        "timings": {
            "import_s": round(import_s, 4),
            "load_s": round(engine.load_s, 4),
            "prefill_s": round(stats.prefill_s, 4),
            "first_token_s": round(age + stats.first_token_s, 4),
            "decode_s": round(stats.decode_s, 4),
            "tokens_per_s": None if stats.tokens_per_s is None else round(stats.tokens_per_s, 2),
        },
        "engine": asdict(engine.info),
    }


def _report(request: GenerateRequest, choices: Sequence[Choice], stats: Stats) -> None:
    """Say on stderr what the text does not show: dropped tokens, a full context, the seed."""
    terminal, options = request.terminal, request.options
    context = request.model.checkpoint.config.n_positions
    if stats.dropped_tokens:
        terminal.warn(f"{stats.dropped_tokens} tokens were dropped to fit the context of {context}")
    if any(choice.finish_reason == "context" for choice in choices):
        terminal.warn(f"the text ends where the context of {context} tokens does (--overflow slide goes on)")
    if request.output.json or request.output.jsonl:
        return
    parts = [] if options.greedy else [f"seed {options.seed}"]
    if terminal.stderr_is_terminal:
        parts.append(f"{stats.completion_tokens} tokens")
        if stats.tokens_per_s is not None:
            parts.append(f"{stats.tokens_per_s:.1f} tokens/s")
        parts.append(", ".join(dict.fromkeys(str(choice.finish_reason) for choice in choices)))
    if parts:
        terminal.note(" · ".join(parts))
