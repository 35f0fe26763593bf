"""The one engine behind every command: load a model, stream chunks, generate texts."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, overload

import torch

from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.core.decode import Step, decode, prefill_chunks
from gpt2cli.core.linear import has_fbgemm
from gpt2cli.core.model import GPT2
from gpt2cli.core.pages import keep_freed_memory
from gpt2cli.core.quantise import Kind
from gpt2cli.core.results import Chunk, EngineInfo, Result, Stats, TextOf, new_choices
from gpt2cli.core.sampling import SequenceState
from gpt2cli.core.threads import Governor, default_threads
from gpt2cli.core.weights import check_cache_memory, check_memory, load_weights
from gpt2cli.errors import InvalidOption, ModelFileError, PromptTooLong, UsageError
from gpt2cli.options import GenerateOptions, LoadOptions, Precision
from gpt2cli.text.tokenizer import Tokenizer


class Engine:
    """A loaded model. One stream at a time is open; opening another closes it.

    ``tokenizer`` is None for a model without one: then prompts are token ids, and chunks have no text.
    The keys and values of the last single sequence are kept: a prompt that begins as that text did
    computes only what is new.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: GPT2, tokenizer: Tokenizer | None, load_s: float = 0.0
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.model = model
        self.tokenizer = tokenizer
        self.load_s = load_s
        self._cache = model.new_cache()
        self._cached_ids: list[int] = []
        self._open: Generator[Chunk, None, None] | None = None
        self._interrupted = False

    @classmethod
    def load(cls, path: str | Path, options: LoadOptions | None = None) -> Engine:
        """Load the model in the directory ``path``.

        Raises `ModelNotFound`, `ModelFileError`, `UsageError` (a device that is not there), and
        `Gpt2cliError` when the memory does not suffice.
        """
        options = options or LoadOptions()
        return cls.from_checkpoint(open_checkpoint(Path(path), allow_pickle=options.allow_pickle), options)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: LoadOptions | None = None) -> Engine:
        """Load a model whose directory is already read and checked."""
        started = time.perf_counter()
        options = options or LoadOptions()
        device = _choose_device(options.device)
        threads = options.threads or default_threads()
        torch.set_num_threads(threads)
        precision = _choose_precision(options.precision, device)
        check_memory(checkpoint, precision)
        tokenizer = Tokenizer.from_directory(checkpoint.directory)
        model = GPT2(checkpoint.config, load_weights(checkpoint, precision, device, options.converted))
        if device.type == "cpu":
            keep_freed_memory()
        if options.threads is None and device.type == "cpu":
            model.governor = Governor(threads)
        return cls(checkpoint, model, tokenizer, time.perf_counter() - started)

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        weights = self.model.weights
        governor = self.model.governor
        threads = torch.get_num_threads() if governor is None else governor.most
        return EngineInfo(self.model.device.type, weights.precision, weights.kernels, threads)

    def options(self, **given: Any) -> GenerateOptions:
        """`GenerateOptions` with the model's own sampling defaults under what is ``given``."""
        return self.checkpoint.generate_options(given)

    def encode(self, prompt: str, *, special_tokens: bool = False) -> list[int]:
        """The ids of ``prompt``; of an empty one, the model's bos. Raises `UsageError`, `ModelFileError`."""
        if self.tokenizer is None:
            raise ModelFileError(
                f"{self.checkpoint.directory}: it has no tokenizer",
                hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
            )
        ids = self.tokenizer.encode(prompt, special_tokens=special_tokens)
        if ids and max(ids) >= self.config.vocab_size:
            raise ModelFileError(
                f"{self.checkpoint.directory}: its tokenizer gives id {max(ids)}, "
                f"and the model's vocabulary has {self.config.vocab_size}"
            )
        if ids:
            return ids
        if self.config.bos_token_id is None:
            raise UsageError("the prompt is empty, and the model has no token to start a text with")
        return [self.config.bos_token_id]

    def stream(
        self, prompt: str | Sequence[int], options: GenerateOptions | None = None
    ) -> Generator[Chunk, None, None]:
        """Chunks as they are drawn; close the generator to stop early.

        ``prompt`` is a text or token ids; without ``options`` the model's defaults apply. The prompt
        is checked now, before the first chunk. Raises `UsageError`, `PromptTooLong`, `ModelFileError`, and
        `Gpt2cliError` when the memory does not suffice.
        """
        started = time.perf_counter()
        options = (options or self.options()).settled()
        ids, dropped, max_new_tokens = self.prepare(prompt, options)
        check_cache_memory(self.config, options.num_return_sequences, len(ids) + max_new_tokens)
        self._close_stream()
        self._open = self._run(ids, dropped, max_new_tokens, options, started)
        return self._open

    @overload
    def generate(self, prompt: str | Sequence[int], options: GenerateOptions | None = None) -> Result: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], options: GenerateOptions | None = None
    ) -> list[Result]: ...

    def generate(
        self,
        prompt: str | Sequence[int] | list[str] | list[list[int]],
        options: GenerateOptions | None = None,
    ) -> Result | list[Result]:
        """The joined chunks of `stream`; of a list of prompts, the result of each.

        Prompts of a list may have different lengths, and take one step together; each gets the text that
        it gets alone, sequence *i* of each from ``seed + i``. Raises what `stream` raises.
        """
        options = (options or self.options()).settled()
        if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
            from gpt2cli.core.batch import generate_batch

            self._close_stream()
            return generate_batch(self, cast(list[str], prompt), options)
        prompt = cast("str | Sequence[int]", prompt)
        choices = new_choices(options)
        stats = None
        for chunk in self.stream(prompt, options):
            choices[chunk.sequence].add(chunk)
            stats = chunk.stats
        return Result(choices, options, cast(Stats, stats))

    def prepare(self, prompt: str | Sequence[int], options: GenerateOptions) -> tuple[list[int], int, int]:
        """The ids of a prompt that are kept, how many before them are dropped, and how many may come.

        Raises what `stream` raises.
        """
        if isinstance(prompt, str):
            self._check_bytes(prompt, options)
            ids = self.encode(prompt, special_tokens=options.special_tokens)
        else:
            ids = list(prompt)
        kept, max_new_tokens = self._fit(ids, options)
        return ids[len(ids) - kept :], len(ids) - kept, max_new_tokens

    def eos_ids(self, options: GenerateOptions) -> frozenset[int]:
        """The tokens that end a text."""
        return frozenset() if options.ignore_eos else frozenset(self.config.eos_token_ids)

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called since the last request."""
        return self._interrupted

    def _close_stream(self) -> None:
        if self._open is not None:
            self._open.close()
        self._interrupted = False

    def interrupt(self) -> None:
        """End the open stream after the token it is at, with ``finish_reason`` ``interrupted``.

        Safe to call from a signal handler.
        """
        self._interrupted = True

    def _check_bytes(self, prompt: str, options: GenerateOptions) -> None:
        """Refuse, before tokenising it, a prompt that cannot fit."""
        if options.overflow != "error" or self.tokenizer is None:
            return
        longest = self.tokenizer.longest_token
        if longest and len(prompt) > longest * self.config.n_positions:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} characters, "
                f"the model's context only {self.config.n_positions} tokens",
                hint="shorten it, or keep its end with --overflow truncate",
            )

    def _fit(self, ids: Sequence[int], options: GenerateOptions) -> tuple[int, int]:
        """How many of the prompt's last tokens are kept, and how many new ones may come."""
        context = self.config.n_positions
        if not ids:
            raise UsageError("the prompt has no tokens")
        if not all(0 <= token < self.config.vocab_size for token in ids):
            raise UsageError(
                f"the prompt has a token outside the model's vocabulary of {self.config.vocab_size}"
            )
        if options.max_length is not None:
            new = options.max_length - len(ids)
            if new < 1:
                raise InvalidOption("max_length", f"the prompt alone has {len(ids)} tokens")
        else:
            new = options.max_new_tokens or 0
        kept = len(ids)
        if options.overflow != "error" and kept + new > context:
            kept = min(kept, max(1, context - min(new, context // 2)))
        if kept >= context and not (options.overflow == "slide" and kept == context):
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens; the model's context is {context}, and one must be left",
                hint="shorten it, or keep its end with --overflow truncate",
            )
        return kept, new

    def _run(
        self, ids: list[int], dropped: int, max_new_tokens: int, options: GenerateOptions, started: float
    ) -> Generator[Chunk, None, None]:
        states = [
            SequenceState(index=i, seed=seed, ids=list(ids), prompt_tokens=len(ids), dropped=dropped)
            for i, seed in enumerate(options.seeds)
        ]
        texts = [TextOf(self.tokenizer, options.stop) for _ in states]
        cached = self._reuse(ids)
        self._cache.reserve(min(len(ids) + max_new_tokens, self.config.n_positions))
        for part in prefill_chunks(self.model, self._cache, ids[cached:]):
            logits, now = part, time.perf_counter()
            self._cached_ids = ids[: self._cache.lengths[0]]
            if self._interrupted:
                yield from self._end(states, texts, cached, (started, now, now))
                return
        prefilled = time.perf_counter()
        cache = self._cache
        if len(states) > 1:
            cache, logits = cache.expand(len(states)), logits.expand(len(states), -1)
        steps = decode(
            self.model,
            cache,
            logits,
            states,
            options,
            max_new_tokens=max_new_tokens,
            eos_ids=self.eos_ids(options),
        )
        first = None
        try:
            for step in steps:
                first = first or time.perf_counter()
                yield from self._chunks(step, texts[step.state.index])
                if self._interrupted:
                    break
        finally:
            steps.close()
            if len(states) == 1:
                self._remember(states[0])
        yield from self._end(states, texts, cached, (started, prefilled, first or prefilled))

    def _end(
        self,
        states: Sequence[SequenceState],
        texts: Sequence[TextOf],
        cached: int,
        times: tuple[float, float, float],
    ) -> Iterator[Chunk]:
        """The end of sequences that were interrupted, and the last chunk; ``times`` as in `_last_chunk`."""
        for state in states:
            if state.finish_reason is None:
                state.finish_reason = "interrupted"
                yield Chunk(state.index, texts[state.index].flush(), finish_reason="interrupted")
        yield self._last_chunk(states, cached, times)

    def _chunks(self, step: Step, text: TextOf) -> Iterator[Chunk]:
        """A token's chunk, and the end of its sequence where this is it. The very last chunk comes later."""
        state = step.state
        if step.token is not None:
            shown = text.push(step.token)
            if text.stopped:
                state.finish_reason = "stop"
            yield Chunk(state.index, shown, step.token, step.logprobs)
        if state.finish_reason is not None:
            yield Chunk(state.index, text.flush(), finish_reason=state.finish_reason)

    def _last_chunk(
        self, states: Sequence[SequenceState], cached: int, times: tuple[float, float, float]
    ) -> Chunk:
        """Statistics; ``times`` are when the stream was asked for, prefilled, and had its first token."""
        started, prefilled, first = times
        last = time.perf_counter()
        completed = sum(state.new_tokens for state in states)
        later = completed - sum(1 for state in states if state.new_tokens)
        stats = Stats(
            prompt_tokens=states[0].dropped + states[0].prompt_tokens,
            completion_tokens=completed,
            dropped_tokens=states[0].dropped + max(state.window for state in states),
            cached_tokens=cached,
            prefill_s=prefilled - started,
            first_token_s=first - started,
            decode_s=last - first,
            tokens_per_s=later / (last - first) if later and last > first else None,
        )
        return Chunk(states[-1].index, stats=stats)

    def _reuse(self, ids: Sequence[int]) -> int:
        """Keep the part of the cache that is a prefix of ``ids``; its length. The last id is always new."""
        common = 0
        for old, new in zip(self._cached_ids, ids[:-1], strict=False):
            if old != new:
                break
            common += 1
        self._cache.truncate(common)
        self._cached_ids = list(ids[:common])
        return self._cache.lengths[0]

    def _remember(self, state: SequenceState) -> None:
        """What the cache now holds. Its length is true even after an interrupt in the middle of a step."""
        self._cached_ids = state.ids[state.window :][: self._cache.lengths[0]]


def _choose_precision(asked: Precision, device: torch.device) -> Kind:
    """``auto`` is the fastest that is lossless in practice: 16-bit weights, with sums in fp32 on a CPU."""
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return "fp16" if has_fbgemm() else "fp32"
    return "fp16"


def _choose_device(asked: str) -> torch.device:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present[asked]:
        raise UsageError(f"--device {asked}: there is no such device here", hint="use --device auto")
    return torch.device(asked)
