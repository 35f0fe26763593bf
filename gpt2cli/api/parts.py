"""The parts of a request: what an engine is to do, and what has come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2cli.api.errors import ApiError
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Chunk, Stats
from gpt2cli.core.sampling import TokenLogprobs
from gpt2cli.core.sequence import Group
from gpt2cli.options import GenerateOptions


@dataclass(frozen=True)
class Texts:
    """Texts that continue one prompt. ``first`` is the index of the first of them in the answer.

    ``options`` have a seed; a ``max_new_tokens`` of 0 only reads the prompt.
    """

    prompt: int
    first: int
    ids: list[int]
    options: GenerateOptions
    max_new_tokens: int
    eos_ids: frozenset[int]
    prompt_logprobs: int | None = None

    @property
    def rows(self) -> int:
        """How many texts."""
        return self.options.num_return_sequences

    def tokens(self, context: int) -> int:
        """The most tokens whose keys and values are kept for it, the prompt's own slot included."""
        several = self.rows + (self.rows > 1)
        return several * min(len(self.ids) + self.max_new_tokens, context)

    def group(self, engine: Engine) -> Group:
        """What the scheduler runs."""
        return Group(
            list(self.ids),
            self.options,
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.eos_ids,
            tokenizer=engine.tokenizer,
            prompt_logprobs=self.prompt_logprobs,
        )


@dataclass(frozen=True)
class Call:
    """Something else that the engine computes, between two steps. ``first`` is its place in the answer."""

    first: int
    run: Callable[[Engine], Any]


Part = Texts | Call


@dataclass(frozen=True, slots=True)
class Text:
    """A chunk of one text."""

    index: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of a prompt's tokens from the second on; before the first `Text` of its part."""

    prompt: int
    scores: Sequence[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Computed:
    """What a `Call` gave."""

    index: int
    value: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """The part whose first index this is has ended."""

    first: int
    stats: Stats | None


Event = Text | Scored | Computed | Ended | ApiError
