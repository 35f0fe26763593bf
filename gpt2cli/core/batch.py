"""Many prompts at once: one decode step for all of them, each text as it would be alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from gpt2cli.core.cache import KVCache
from gpt2cli.core.decode import decode, prefill
from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Result, Stats, TextOf, new_choices
from gpt2cli.core.sampling import SequenceState
from gpt2cli.core.weights import check_cache_memory
from gpt2cli.options import GenerateOptions

ROWS = 32
"""Sequences that are decoded together; more gain little, and their keys and values take memory."""


class _Prompt:
    """One prompt of a batch: its sequences as they grow, and what comes of them."""

    def __init__(self, engine: Engine, prompt: str | Sequence[int], options: GenerateOptions) -> None:
        self._options = options
        self.started = time.perf_counter()
        self.ids, self.dropped, self.max_new_tokens = engine.prepare(prompt, options)
        self.states: list[SequenceState] = []
        self.prefilled = self.first = self.last = self.started

    def begin(self, index: int) -> list[SequenceState]:
        """The states of its sequences, which are ``index`` and the following of the batch."""
        self.states = [
            SequenceState(index + n, seed, list(self.ids), len(self.ids), self.dropped)
            for n, seed in enumerate(self._options.seeds)
        ]
        return self.states

    def result(self, texts: Sequence[str], logprobs: Sequence[list[object]]) -> Result:
        choices = new_choices(self._options)
        for choice, state, text, details in zip(choices, self.states, texts, logprobs, strict=True):
            choice.text, choice.finish_reason = text, state.finish_reason
            choice.token_ids = state.ids[state.prompt_tokens :]
            choice.logprobs = details  # type: ignore[assignment]
        completed = sum(state.new_tokens for state in self.states)
        later, decode_s = completed - sum(1 for s in self.states if s.new_tokens), self.last - self.first
        stats = Stats(
            prompt_tokens=self.dropped + len(self.ids),
            completion_tokens=completed,
            dropped_tokens=self.dropped + max(state.window for state in self.states),
            cached_tokens=0,
            prefill_s=self.prefilled - self.started,
            first_token_s=self.first - self.started,
            decode_s=decode_s,
            tokens_per_s=later / decode_s if later and decode_s > 0 else None,
        )
        return Result(choices, self._options, stats)


def generate_batch(
    engine: Engine, prompts: Sequence[str] | Sequence[Sequence[int]], options: GenerateOptions
) -> list[Result]:
    """The result of each prompt. Raises what `Engine.stream` raises, before anything is generated."""
    whole = [_Prompt(engine, prompt, options) for prompt in prompts]
    at_once = max(1, ROWS // options.num_return_sequences)
    if options.rng == "transformers":
        # One draw a step for all rows: they cannot be told apart by groups.
        at_once = max(1, len(whole))
    results: list[Result] = []
    for start in range(0, len(whole), at_once):
        results += _run(engine, whole[start : start + at_once], options)
    return results


def _run(engine: Engine, prompts: Sequence[_Prompt], options: GenerateOptions) -> list[Result]:
    """One group, from prefill to the last token."""
    model, copies = engine.model, options.num_return_sequences
    longest = max(len(p.ids) + p.max_new_tokens for p in prompts)
    check_cache_memory(engine.config, len(prompts) * copies, longest)
    caches, logits = [], []
    for prompt in prompts:
        prompt.started = time.perf_counter()
        cache = model.new_cache(capacity=len(prompt.ids))
        logits.append(prefill(model, cache, prompt.ids).expand(copies, -1))
        caches += [cache] * copies
        prompt.prefilled = time.perf_counter()
    cache = KVCache.join(caches, min(longest, engine.config.n_positions))
    states = [state for n, prompt in enumerate(prompts) for state in prompt.begin(n * copies)]
    owners = [prompt for prompt in prompts for _ in range(copies)]
    texts = [TextOf(engine.tokenizer, options.stop) for _ in states]
    shown = [""] * len(states)
    details: list[list[object]] = [[] for _ in states]
    steps = decode(
        model,
        cache,
        torch.cat(logits),
        states,
        options,
        max_new_tokens=[owner.max_new_tokens for owner in owners],
        eos_ids=engine.eos_ids(options),
    )
    for step in steps:
        index, owner = step.state.index, owners[step.state.index]
        owner.last = time.perf_counter()
        owner.first = owner.first if owner.first > owner.prefilled else owner.last
        if step.token is not None:
            shown[index] += texts[index].push(step.token)
            if texts[index].stopped:
                step.state.finish_reason = "stop"
            if step.logprobs is not None:
                details[index].append(step.logprobs)
        if step.state.finish_reason is not None:
            shown[index] += texts[index].flush()
        if engine.interrupted:
            break
    steps.close()
    for index, state in enumerate(states):
        if state.finish_reason is None:
            state.finish_reason = "interrupted"
            shown[index] += texts[index].flush()
    rows = [slice(n * copies, (n + 1) * copies) for n in range(len(prompts))]
    return [p.result(shown[part], details[part]) for p, part in zip(prompts, rows, strict=True)]
