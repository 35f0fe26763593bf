"""Ids to ids: prefill a prompt, then draw token after token, for one sequence or many."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2cli.core.cache import KVCache
from gpt2cli.core.model import GPT2
from gpt2cli.core.sampling import SequenceState, TokenLogprobs, make_sampler, token_logprobs
from gpt2cli.options import GenerateOptions, Overflow

PREFILL_CHUNK = 512
PACK_AT_ONCE = 3_000_000
"""How many weights each of the first steps packs for those to come: about 40 ms."""
LONG_RUN = 200
"""Steps after which it is worth it to join pages of memory, too."""
JOIN_AT_ONCE = 2**23
"""How many bytes each step then joins: about 15 ms."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one sequence; ``token`` is None when the sequence ended with an end-of-text token."""

    state: SequenceState
    token: int | None
    logprobs: TokenLogprobs | None = None


def prefill(model: GPT2, cache: KVCache, ids: Sequence[int]) -> Tensor:
    """Put ``ids`` into a one-row cache; the logits after the last, [1, V]."""
    *_, logits = prefill_chunks(model, cache, ids)
    return logits


def prefill_chunks(model: GPT2, cache: KVCache, ids: Sequence[int]) -> Iterator[Tensor]:
    """`prefill` in chunks of bounded memory, one a step, so that it can be left between them."""
    for start in range(0, len(ids), PREFILL_CHUNK):
        chunk = torch.tensor([ids[start : start + PREFILL_CHUNK]], device=model.device)
        yield model.forward(chunk, cache)


def decode(
    model: GPT2,
    cache: KVCache,
    logits: Tensor,
    states: Sequence[SequenceState],
    options: GenerateOptions,
    *,
    max_new_tokens: int | Sequence[int],
    eos_ids: frozenset[int],
) -> Generator[Step, None, None]:
    """Draw tokens until every sequence has a ``finish_reason``: eos, length or context.

    ``logits`` [B, V] are those after the prompts, whose keys are in ``cache``, row for row with
    ``states``; ``max_new_tokens`` is one number, or one for each. The caller may end a sequence itself, by
    setting its ``finish_reason`` between steps. Rows whose sequences have ended leave the batch.
    """
    sampler = make_sampler(options, len(states))
    limits = [max_new_tokens] * len(states) if isinstance(max_new_tokens, int) else max_new_tokens
    longest = {state.index: limit for state, limit in zip(states, limits, strict=True)}
    active = list(states)
    with model.governor.decoding() if model.governor else nullcontext():
        while True:
            tokens = sampler(logits, active)
            logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
            if options.logprobs is not None:
                logprobs = [*token_logprobs(logits, tokens, options.logprobs)]
            for state, token, detail in zip(active, tokens, logprobs, strict=True):
                if token in eos_ids:
                    state.finish_reason = "eos"
                    yield Step(state, None)
                    continue
                state.ids.append(token)
                state.finish_reason = _finish_reason(model, state, longest[state.index], options.overflow)
                yield Step(state, token, detail)
            going = [row for row, state in enumerate(active) if state.finish_reason is None]
            if not going:
                return
            if len(going) < len(active):
                cache, active = cache.select(going), [active[row] for row in going]
            logits = _timed_step(model, cache, active)


def _timed_step(model: GPT2, cache: KVCache, states: Sequence[SequenceState]) -> Tensor:
    """`decode_one_token`, and what makes the next ones faster: packed weights, fit threads."""
    model.steps += 1
    if not model.weights.packed:
        model.weights.pack(PACK_AT_ONCE)
        return decode_one_token(model, cache, states)
    if model.steps > LONG_RUN and model.device.type == "cpu" and not model.pages.done:
        model.pages.join(JOIN_AT_ONCE)
    if model.governor is None:
        return decode_one_token(model, cache, states)
    started, used = time.perf_counter(), time.process_time()
    logits = decode_one_token(model, cache, states)
    took = time.perf_counter() - started
    model.governor.step(took, (time.process_time() - used) / took)
    return logits


def _finish_reason(model: GPT2, state: SequenceState, max_new_tokens: int, overflow: Overflow) -> str | None:
    if state.new_tokens >= max_new_tokens:
        return "length"
    if overflow != "slide" and len(state.ids) >= model.config.n_positions:
        return "context"
    return None


def decode_one_token(model: GPT2, cache: KVCache, states: Sequence[SequenceState]) -> Tensor:
    """Feed each sequence its newest token; the logits after it, [B, V]."""
    for row, state in enumerate(states):
        if cache.lengths[row] >= model.config.n_positions:
            _slide(model, cache, row, state)
    ids = torch.tensor([[state.ids[-1]] for state in states], device=model.device)
    if model.device.type == "cuda":
        from gpt2cli.core.cuda_graph import graph_step

        return graph_step(model, ids, cache)
    return model.forward(ids, cache)


def _slide(model: GPT2, cache: KVCache, row: int, state: SequenceState) -> None:
    """Move a full row's window on by a quarter of the context; positions are absolute, so prefill again."""
    state.window += max(1, model.config.n_positions // 4)
    view = cache.row(row)
    view.truncate(0)
    # Should the prefill be interrupted, what it leaves behind must not count as present.
    cache.lengths[row] = 0
    kept = state.ids[state.window : -1]
    if kept:
        prefill(model, view, kept)
    cache.lengths[row] = view.lengths[0]
