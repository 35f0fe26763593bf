"""What a request gives: chunks as they come, choices and statistics at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt2cli.core.backend import EngineInfo
from gpt2cli.core.sampling import TokenLogprobs
from gpt2cli.options import GenerateOptions
from gpt2cli.text.detokenizer import Detokenizer
from gpt2cli.text.sentences import SentenceLimit
from gpt2cli.text.stops import StopMatcher
from gpt2cli.text.tokenizer import Tokenizer

__all__ = ["Choice", "Chunk", "EngineInfo", "Result", "Stats", "TextOf", "new_choices"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What one stream did. Times are in seconds, from the call of `Engine.stream`."""

    prompt_tokens: int
    completion_tokens: int
    dropped_tokens: int
    """Prompt tokens cut off, and what a sliding window left behind (of the sequence that left most)."""
    cached_tokens: int
    """Prompt tokens that did not have to be computed again."""
    prefill_s: float
    first_token_s: float
    decode_s: float
    """From the first token to the end."""
    tokens_per_s: float | None
    """Tokens after the first of each sequence, over ``decode_s``; None when there are none."""
    steps: int
    """Passes of the model after the prompt was read."""
    drafted: int
    """Tokens that were guessed ahead (`GenerateOptions.draft`) and verified."""
    accepted: int
    """Those of them that were right, and so came without a pass of their own."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of a stream.

    A token's chunk has ``token``; ``text`` is what became certain with it, often empty. A sequence
    ends with a chunk that has ``finish_reason`` (``stop``, ``length``, ``eos``, ``context`` or
    ``interrupted``), no token, and the rest of the text. The last chunk of a stream has ``stats``.
    """

    sequence: int
    text: str = ""
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    finish_reason: str | None = None
    stats: Stats | None = None
    drafted: bool = False
    """Whether the token was guessed ahead, and right."""

    @property
    def logprob(self) -> float | None:
        """The token's log-probability, where `GenerateOptions.logprobs` asks for it."""
        return self.logprobs.logprob if self.logprobs else None


@dataclass(slots=True)
class Choice:
    """One finished continuation. ``token_ids`` are what was generated, without an end-of-text token."""

    index: int
    seed: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in one of this sequence's chunks."""
        self.text += chunk.text
        if chunk.token is not None:
            self.token_ids.append(chunk.token)
        if chunk.logprobs is not None:
            self.logprobs.append(chunk.logprobs)
        self.finish_reason = chunk.finish_reason or self.finish_reason


@dataclass(frozen=True, slots=True)
class Result:
    """What `Engine.generate` returns; ``str(result)`` is the first choice's text."""

    choices: tuple[Choice, ...]
    options: GenerateOptions
    stats: Stats

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    def __str__(self) -> str:
        return self.text


class TextOf:
    """The text of one sequence: detokenised, and cut at a stop or after so many sentences."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        max_sentences: int | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt) if tokenizer else None
        self._stops = StopMatcher(stops)
        self._sentences = SentenceLimit(max_sentences)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped or self._sentences.stopped

    def push(self, token: int) -> str:
        if self._detokenizer is None:
            return ""
        return self._sentences.push(self._stops.push(self._detokenizer.push(token)))

    def flush(self) -> str:
        """What was held back; the end of the text may still complete a stop."""
        if self._detokenizer is None:
            return ""
        return self._sentences.push(self._stops.push(self._detokenizer.flush()) + self._stops.flush())


def new_choices(options: GenerateOptions) -> tuple[Choice, ...]:
    """Empty choices for the sequences that ``options`` (with a seed) ask for."""
    return tuple(Choice(index, seed) for index, seed in enumerate(options.seeds))
