"""A run again that was interrupted: it ends where it had ended."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt2cli.runs.record import INTERRUPTED, RunText

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Chunk, TextOf
    from gpt2cli.options import GenerateOptions


def tokens_until_interrupted(texts: Sequence[RunText]) -> dict[int, int]:
    """How many tokens each interrupted text had, by its number."""
    return {
        number: len(text.token_ids)
        for number, text in enumerate(texts)
        if text.finish_reason == INTERRUPTED and text.token_ids is not None
    }


def cut(
    chunks: Generator[Chunk, None, None],
    limits: Mapping[int, int],
    engine: Engine,
    prompt: Sequence[int],
    options: GenerateOptions,
) -> Iterator[Chunk]:
    """``chunks`` after ``prompt``, of which each text in ``limits`` ends as interrupted after so many tokens.

    When all texts have ended so, the engine is told to stop.
    """
    from gpt2cli.core.results import Chunk, TextOf

    texts: dict[int, TextOf] = {
        number: TextOf(engine.tokenizer, options.stop, options.max_sentences, prompt) for number in limits
    }
    left = dict(limits)
    going = set(range(options.num_return_sequences))

    def end(number: int) -> Chunk:
        del left[number]
        return Chunk(number, texts[number].flush(), finish_reason=INTERRUPTED)

    def ended(number: int) -> None:
        going.discard(number)
        if not going:
            engine.interrupt()

    for number in [number for number, count in left.items() if count == 0]:
        yield end(number)
        ended(number)
    for chunk in chunks:
        number = chunk.sequence
        if chunk.stats is not None:
            yield chunk
        elif number not in limits:
            yield chunk
            if chunk.finish_reason is not None:
                ended(number)
        elif number in left:
            if chunk.token is None:
                # It ends by itself, earlier than it was interrupted.
                del left[number]
                yield replace(chunk, text=texts[number].flush())
                ended(number)
                continue
            left[number] -= 1
            yield replace(chunk, text=texts[number].push(chunk.token), finish_reason=None)
            if left[number] == 0:
                yield end(number)
                ended(number)
