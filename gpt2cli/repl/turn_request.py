"""One draw of an answer: what is asked of the engine, and what is told of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.errors import UsageError
from gpt2cli.options import MAX_SEED, GenerateOptions
from gpt2cli.repl.context import Context, ids_of_text
from gpt2cli.repl.options import OPTION_NAMES, differing
from gpt2cli.repl.tree import Turn

if TYPE_CHECKING:
    from gpt2cli.core.results import Choice, Stats
    from gpt2cli.repl.speaker import Speaker
    from gpt2cli.text.tokenizer import Tokenizer

DRAW_STRIDE = 0x9E3779B1
"""Between the seeds of two draws of the same turn (2**32 over the golden ratio, so that they spread)."""


@dataclass(frozen=True, slots=True)
class TurnStats:
    """What the last draw did. Times are in seconds."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were still there."""
    prefilled_tokens: int
    """Prompt tokens that were computed: the rest."""
    completion_tokens: int
    prefill_s: float
    first_token_s: float
    decode_s: float
    tokens_per_s: float | None
    context_tokens: int
    """Tokens of the context in use after the draw, of the model's ``n_positions``."""
    steps: int
    """Passes of the model after the prompt was read."""
    drafted: int
    """Tokens that were guessed ahead."""
    accepted: int
    """Those of them that were right."""
    dropped_turns: int
    """Oldest turns that this draw no longer saw, and the one before did."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One request to the engine, and where its answers go in the tree."""

    parent: Turn | None
    user: str
    context: Context
    options: GenerateOptions
    draw: int
    start: tuple[int, ...] = ()
    """The tokens of an answer that goes on, and below its text."""
    start_text: str = ""
    continues: int | None = None
    branches: bool = False


def turn_seed(seed: int, depth: int, draw: int) -> int:
    """The seed of an answer: that of the session, the turns before it, and how often it was drawn before.

    So a session is drawn again from its seed, and the first answer of a story is what ``generate
    --seed`` gives.
    """
    return (seed + depth + draw * DRAW_STRIDE) % (MAX_SEED + 1)


def answer_options(
    engine: Speaker,
    given: Mapping[str, Any],
    seed: int,
    stops: tuple[str, ...],
    logprobs: int | None,
    draft: str,
) -> GenerateOptions:
    """The options of an answer: what is ``given``, the format's ``stops``, and ``seed`` where none is given.

    Raises `UsageError`, `InvalidOption`.
    """
    unknown = given.keys() - {*OPTION_NAMES, "num_return_sequences", "logprobs"}
    if unknown:
        raise UsageError(f"{', '.join(sorted(unknown))}: not an option of a conversation")
    settled: dict[str, Any] = {"logprobs": logprobs, **given, "draft": draft}
    settled["stop"] = (*given.get("stop", ()), *stops)
    if given.get("seed") is None:
        settled["seed"] = min(seed, MAX_SEED - given.get("num_return_sequences", 1) + 1)
    return engine.options(**settled).settled()


def turn_stats(stats: Stats, request: TurnRequest) -> TurnStats:
    """What `/stats` shows of a draw."""
    return TurnStats(
        prompt_tokens=stats.prompt_tokens,
        cached_tokens=stats.cached_tokens,
        prefilled_tokens=stats.prompt_tokens - stats.cached_tokens,
        completion_tokens=stats.completion_tokens,
        prefill_s=stats.prefill_s,
        first_token_s=stats.first_token_s,
        decode_s=stats.decode_s,
        tokens_per_s=stats.tokens_per_s,
        context_tokens=stats.prompt_tokens + stats.completion_tokens // request.options.num_return_sequences,
        steps=stats.steps,
        drafted=stats.drafted,
        accepted=stats.accepted,
        dropped_turns=request.context.newly_dropped,
    )


def answered(
    request: TurnRequest, choice: Choice, turn_id: int, tokenizer: Tokenizer | None, *, strips: bool
) -> Turn:
    """The turn that the drawn ``choice`` makes; with ``strips`` the white space around its text is not part
    of it.
    """
    text, ids = choice.text, [*request.start, *choice.token_ids]
    if tokenizer is not None:
        ids = [*request.start, *ids_of_text(tokenizer, choice.token_ids, text.rstrip() if strips else text)]
    text = request.start_text + text
    logprobs = [detail.logprob for detail in choice.logprobs]
    return Turn(
        id=turn_id,
        parent=None if request.parent is None else request.parent.id,
        user=request.user,
        answer=text.strip() if strips else text,
        answer_ids=ids,
        seed=choice.seed,
        draw=request.draw,
        options=differing(replace(request.options, num_return_sequences=1)),
        finish_reason=choice.finish_reason or "interrupted",
        first=request.context.turns[0].id if request.context.turns else turn_id,
        continues=request.continues,
        logprobs=list(zip(choice.token_ids, logprobs, strict=False)) or None,
    )
