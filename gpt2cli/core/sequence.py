"""One text while it grows, and the group of texts that continue one prompt."""

from __future__ import annotations

import time

from gpt2cli.core.backend import Floats
from gpt2cli.core.results import Chunk, Stats, TextOf
from gpt2cli.core.sampling import (
    Sampler,
    TokenLogprobs,
    TransformersDraw,
    check_finite,
    token_logprobs,
)
from gpt2cli.options import GenerateOptions
from gpt2cli.text.tokenizer import Tokenizer


class Sequence:
    """One text: its tokens, which of them the backend holds, and how it ended.

    ``ids`` are the prompt (what was kept of it) and what was generated. ``ids[window:]`` is what the
    context holds when all of it is read, and of these the first ``present`` are in ``slot``. Behind them
    stand ``drafts``, which may turn out to be the next tokens.
    """

    __slots__ = (
        "drafts",
        "finish_reason",
        "group",
        "ids",
        "index",
        "present",
        "seed",
        "slot",
        "text",
        "window",
    )

    def __init__(self, group: Group, index: int, seed: int, tokenizer: Tokenizer | None) -> None:
        self.group, self.index, self.seed = group, index, seed
        self.ids = list(group.prompt)
        self.window = self.present = 0
        self.drafts: list[int] = []
        self.slot: int | None = None
        options = group.options
        self.text = TextOf(tokenizer, options.stop, options.max_sentences, group.prompt)
        self.finish_reason: str | None = None

    @property
    def position(self) -> int:
        """The logical position of the next token in the whole text, never reset."""
        return self.group.dropped + len(self.ids)

    @property
    def new_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.ids) - len(self.group.prompt)

    @property
    def unread(self) -> int:
        """How many tokens of the window are not in the slot yet."""
        return len(self.ids) - self.window - self.present

    @property
    def scoring(self) -> bool:
        """Whether the tokens that are not in the slot yet are of a prompt that is to be scored."""
        group = self.group
        return group.prompt_logprobs is not None and self.present < len(group.prompt) and not self.window

    def next_ids(self, count: int) -> list[int]:
        """The first ``count`` of the tokens that are not in the slot yet."""
        begin = self.window + self.present
        return self.ids[begin : begin + count]

    def room(self, context: int) -> int:
        """The most drafts that the text, and the window, have room for after a token that is drawn."""
        left = self.group.max_new_tokens - self.new_tokens - 1
        return max(0, min(left, context - (len(self.ids) - self.window)))

    def make_room(self, context: int) -> None:
        """Move a window that is full on by a quarter of the context.

        Positions in a slot are absolute, so all that is left in the window is read again.
        """
        if len(self.ids) - self.window > context:
            # Should the reading be interrupted, what the slot held must not count as present.
            self.present = 0
            self.window += max(1, context // 4)

    def take(self, token: int, logprobs: TokenLogprobs | None, context: int) -> list[Chunk]:
        """Add a token: its chunk, and that of the end where this is the end."""
        group = self.group
        group.drawn()
        right = self.drafts[:1] == [token]
        self.drafts = self.drafts[1:] if right else []
        if token in group.eos_ids:
            return [self.end("eos")]
        self.ids.append(token)
        group.accepted += right
        self.present += right
        chunk = Chunk(self.index, self.text.push(token), token, logprobs, drafted=right)
        if self.text.stopped:
            return [chunk, self.end("stop")]
        if self.new_tokens >= group.max_new_tokens:
            return [chunk, self.end("length")]
        if group.options.overflow != "slide" and len(self.ids) >= context:
            return [chunk, self.end("context")]
        return [chunk]

    def end(self, reason: str) -> Chunk:
        """End the text; the chunk with the rest of it."""
        self.finish_reason = reason
        return Chunk(self.index, self.text.flush(), finish_reason=reason)


class Group:
    """The texts that continue one prompt, which is read once for all of them.

    ``reader`` is what reads it: the only sequence, or one that never draws, of whose slot the others begin
    with a copy. ``logits`` [V] are those after the prompt while a sequence has yet to begin.
    """

    def __init__(
        self,
        prompt: list[int],
        options: GenerateOptions,
        *,
        max_new_tokens: int,
        dropped: int = 0,
        eos_ids: frozenset[int] = frozenset(),
        tokenizer: Tokenizer | None = None,
        started: float | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        """``options`` must have a seed; ``started`` is when the request came, and now without it.

        With ``prompt_logprobs`` each token of the prompt but the first is scored, and so many likeliest ones
        are found in its place; nothing of such a prompt may be in a slot yet. With a ``max_new_tokens`` of 0
        the prompt is read and nothing drawn.
        """
        self.prompt, self.options = prompt, options
        self.prompt_logprobs = prompt_logprobs
        self.scores: list[TokenLogprobs] = []
        """Of the prompt's tokens from the second on, as far as it is read."""
        self.max_new_tokens, self.dropped, self.eos_ids = max_new_tokens, dropped, eos_ids
        self.sampler = Sampler(options, len(prompt))
        self.sequences = [Sequence(self, n, seed, tokenizer) for n, seed in enumerate(options.seeds)]
        several = len(self.sequences) > 1
        self.reader = Sequence(self, -1, 0, None) if several else self.sequences[0]
        self.logits: Floats | None = None
        self.lent = False
        """Whether the reader's slot is the caller's, who keeps it."""
        self.steps = self.drafted = self.accepted = 0
        self.joint: Joint | None = None
        self._cached = 0
        self._started = time.perf_counter() if started is None else started
        self._prefilled: float | None = None
        self._first: float | None = None
        self._last = self._started

    def lend(self, slot: int, present: int) -> None:
        """Have the prompt read into ``slot``, which holds its first ``present`` tokens already."""
        self.lent, self._cached = True, present
        self.reader.slot, self.reader.present = slot, present

    def score(self, begin: int, logits: Floats) -> None:
        """Score the prompt's tokens after the place ``begin`` by the logits [T, V] before each of them.

        Raises `ModelFileError` for logits that are no numbers.
        """
        assert self.prompt_logprobs is not None
        for token, before in zip(self.prompt[begin + 1 :], logits, strict=False):
            check_finite(before)
            self.scores.append(token_logprobs(before, token, self.prompt_logprobs))

    def prefilled(self) -> None:
        """The prompt is read; later calls do nothing."""
        self._prefilled = self._prefilled or time.perf_counter()

    def drawn(self) -> None:
        """A token of one of the sequences is drawn."""
        self._last = time.perf_counter()
        self._first = self._first or self._last

    @property
    def stats(self) -> Stats:
        """What was done for the prompt and its sequences so far."""
        prefilled = self._prefilled or time.perf_counter()
        first = self._first or prefilled
        decode_s = max(0.0, self._last - first)
        completed = sum(sequence.new_tokens for sequence in self.sequences)
        later = completed - sum(1 for sequence in self.sequences if sequence.new_tokens)
        return Stats(
            prompt_tokens=self.dropped + len(self.prompt),
            completion_tokens=completed,
            dropped_tokens=self.dropped + max(sequence.window for sequence in self.sequences),
            cached_tokens=self._cached,
            prefill_s=prefilled - self._started,
            first_token_s=first - self._started,
            decode_s=decode_s,
            tokens_per_s=later / decode_s if later and decode_s > 0 else None,
            steps=self.steps,
            drafted=self.drafted,
            accepted=self.accepted,
        )


class Joint:
    """The sequences of one request with ``rng`` ``transformers``: one draw a step, for all in lockstep."""

    def __init__(self, groups: list[Group]) -> None:
        self._sequences = [sequence for group in groups for sequence in group.sequences]
        seed = groups[0].options.seed
        assert seed is not None
        self._draw = TransformersDraw(seed, len(self._sequences))
        self._held: dict[Sequence, Floats] = {}

    def hold(self, sequence: Sequence, logits: Floats) -> list[tuple[Sequence, Floats, int]]:
        """Keep the logits [V] of one sequence; when all that go on have theirs, a token for each."""
        self._held[sequence] = logits
        going = [n for n, each in enumerate(self._sequences) if each.finish_reason is None]
        if len(self._held) < len(going):
            return []
        held = [(self._sequences[place], self._held[self._sequences[place]]) for place in going]
        self._held = {}
        scores = [each.group.sampler.filtered(logits, each.ids) for each, logits in held]
        greedy = held[0][0].group.options.greedy
        tokens = [int(row.argmax()) for row in scores] if greedy else self._draw(scores, going)
        return [(each, logits, token) for (each, logits), token in zip(held, tokens, strict=True)]
