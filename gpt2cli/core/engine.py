"""The one engine behind every command: load a model, stream chunks, generate texts."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.core.backend import Backend, EngineInfo
from gpt2cli.core.choose import Progress, open_backend
from gpt2cli.core.draft_model import DraftModel
from gpt2cli.core.memory import check_cache_memory
from gpt2cli.core.results import Chunk, Result, Stats, new_choices
from gpt2cli.core.scheduler import ROWS, Scheduler
from gpt2cli.core.sequence import Group
from gpt2cli.errors import InvalidOption, ModelFileError, PromptTooLong, UsageError
from gpt2cli.options import DRAFTS, GenerateOptions, LoadOptions, shown
from gpt2cli.text.parts import TextPart
from gpt2cli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2cli.core.torch_gpt2 import TorchGPT2
    from gpt2cli.core.torch_model import TorchModel
    from gpt2cli.core.transformers_lm import TransformersBackend


class Engine:
    """A loaded model. One stream at a time is open; opening another closes it.

    ``tokenizer`` is None for a model without one: then prompts are token ids, and chunks have no text.
    The keys and values of the last single sequence are kept: a prompt that begins as that text did
    computes only what is new.
    """

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, tokenizer: Tokenizer | None, load_s: float = 0.0
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.backend = backend
        self.tokenizer = tokenizer
        self.load_s = load_s
        self._scheduler = Scheduler(backend)
        self._kept_slot: int | None = None
        self._kept_ids: list[int] = []
        self._small: Engine | None = None
        self._model: TorchGPT2 | None = None
        self._open: Generator[Chunk, None, None] | None = None
        self._interrupted = False

    @classmethod
    def load(
        cls, path: str | Path, options: LoadOptions | None = None, *, adapter: str | Path | None = None
    ) -> Engine:
        """Load the model in the directory ``path``, with the LoRA adapter in the directory ``adapter``.

        Raises `ModelNotFound`, `ModelFileError`, `UsageError` (a device that is not there), and
        `Gpt2cliError` when the memory does not suffice.
        """
        options = options or LoadOptions()
        changed_by = None if adapter is None else Path(adapter)
        checkpoint = open_checkpoint(Path(path), allow_pickle=options.allow_pickle, adapter=changed_by)
        return cls.from_checkpoint(checkpoint, options)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, options: LoadOptions | None = None, progress: Progress | None = None
    ) -> Engine:
        """Load a model whose directory is already read and checked.

        ``progress(done, total)`` is told how many bytes of a conversion are done, should there be one.
        """
        started = time.perf_counter()
        tokenizer = Tokenizer.from_directory(checkpoint.directory)
        backend = open_backend(checkpoint, options or LoadOptions(), progress)
        return cls(checkpoint, backend, tokenizer, time.perf_counter() - started)

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        return self.backend.info

    @property
    def model(self) -> TorchModel:
        """This model in torch, for what looks inside; a GPT-2's is loaded now where another backend runs."""
        if self.config.architecture != "gpt2":
            return cast("TransformersBackend", self.backend).model
        from gpt2cli.core.torch_gpt2 import TorchBackend, load_model

        if isinstance(self.backend, TorchBackend):
            return self.backend.model
        if self._model is None:
            info = self.info
            self._model = load_model(self.checkpoint, info.precision, info.device, info.threads)  # type: ignore[arg-type]
        return self._model

    def draft_with(self, small: Engine | None) -> None:
        """Have requests whose ``draft`` names a model drafted for by this one; None for none.

        It must give each id the same token, and its backend serves this engine from now on. Raises
        `UsageError`.
        """
        if small is not None and small.config.n_positions < 2:
            raise UsageError(f"{small.checkpoint.directory}: its context is too short to guess ahead")
        if small is not None and small.info.cache != "keys-values":
            raise UsageError(
                f"{small.checkpoint.directory}: it cannot guess ahead, for a model of type "
                f"{small.config.architecture} cannot take back what it has read"
            )
        if small is not None:
            one, other = self.tokenizer, small.tokenizer
            alike = one is None or other is None or one.same_vocabulary(other)
            if not alike or small.config.vocab_size != self.config.vocab_size:
                raise UsageError(
                    f"{small.checkpoint.directory}: it cannot guess ahead for this model, which has another "
                    "vocabulary",
                    hint="a draft model has the same tokenizer and is smaller, as distilgpt2 for gpt2-xl",
                )
        self._close_stream()
        self._small = small
        self._scheduler.speculation.draft_with(DraftModel(small.backend) if small else None)

    def options(self, **given: Any) -> GenerateOptions:
        """`GenerateOptions` with the model's own sampling defaults under what is ``given``."""
        return self.checkpoint.generate_options(given)

    def encode(self, prompt: str, *, special_tokens: bool = False, continues: bool = False) -> list[int]:
        """The ids of ``prompt``, which ``continues`` another text or begins one; of an empty one, the model's
        bos. Raises `UsageError`, `ModelFileError`.
        """
        tokenizer = self._needed_tokenizer()
        return self._known(tokenizer.encode(prompt, special_tokens=special_tokens, continues=continues))

    def encode_parts(self, parts: Sequence[TextPart], *, continues: bool = False) -> list[int]:
        """The ids of ``parts`` as one text (`Tokenizer.encode_parts`). Raises as `encode` does."""
        return self._known(self._needed_tokenizer().encode_parts(parts, continues=continues))

    def _needed_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ModelFileError(
                f"{self.checkpoint.directory}: it has no tokenizer",
                hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
            )
        return self.tokenizer

    def _known(self, ids: list[int]) -> list[int]:
        """``ids``, none of which is outside the vocabulary; for none, the model's bos."""
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
        group = self._group(prompt, options, started)
        self._check_cache_memory([group])
        self._close_stream()
        self._open = self._stream(group)
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
            return self._generate_list(cast(list[str], prompt), options)
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
        if options.draft not in DRAFTS and options.rng == "default" and self._small is None:
            raise InvalidOption("draft", f"there is no draft model {shown(options.draft)} here")
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
        if options.overflow != "error" or self.tokenizer is None or len(prompt) <= self.config.n_positions:
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
        if any(token >= self.config.vocab_size for token, _ in options.logit_bias):
            raise InvalidOption("logit_bias", f"the model's vocabulary has {self.config.vocab_size} tokens")
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

    def _group(
        self, prompt: str | Sequence[int], options: GenerateOptions, started: float | None = None
    ) -> Group:
        ids, dropped, max_new_tokens = self.prepare(prompt, options)
        return Group(
            ids,
            options,
            max_new_tokens=max_new_tokens,
            dropped=dropped,
            eos_ids=self.eos_ids(options),
            tokenizer=self.tokenizer,
            started=started,
        )

    def _check_cache_memory(self, groups: Sequence[Group]) -> None:
        rows = sum(len(group.sequences) for group in groups)
        if groups[0].options.rng != "transformers":
            rows = min(rows, ROWS)
        longest = max(len(group.prompt) + group.max_new_tokens for group in groups)
        check_cache_memory(self.backend, rows, longest)
        if self._small is not None and groups[0].options.draft not in DRAFTS:
            check_cache_memory(self._small.backend, rows, longest)

    def _stream(self, group: Group) -> Generator[Chunk, None, None]:
        self._reuse(group)
        try:
            self._scheduler.admit([group])
            for step in self._scheduler.run():
                if step is not None:
                    yield from step.chunks
                if self._interrupted:
                    break
        finally:
            self._scheduler.drop([group])
            self._keep(group)
        for sequence in group.sequences:
            if sequence.finish_reason is None:
                yield sequence.end("interrupted")
        yield Chunk(group.sequences[-1].index, stats=group.stats)

    def _generate_list(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], options: GenerateOptions
    ) -> list[Result]:
        groups = [self._group(prompt, options) for prompt in prompts]
        self._close_stream()
        self._check_cache_memory(groups)
        choices = {group: new_choices(options) for group in groups}
        try:
            self._scheduler.admit(groups)
            for step in self._scheduler.run():
                if step is not None:
                    for chunk in step.chunks:
                        choices[step.sequence.group][chunk.sequence].add(chunk)
                if self._interrupted:
                    break
        finally:
            self._scheduler.drop(groups)
        for group, own in choices.items():
            for sequence, choice in zip(group.sequences, own, strict=True):
                if sequence.finish_reason is None:
                    choice.add(sequence.end("interrupted"))
        return [Result(own, options, group.stats) for group, own in choices.items()]

    def _reuse(self, group: Group) -> None:
        """Have ``group`` read its prompt into the slot that is kept, after what of it is there already.

        The last id is always new, for the logits after it.
        """
        if self._kept_slot is None:
            self._kept_slot = self.backend.new_slot()
        common = self.known_prefix(group.prompt[:-1])
        group.lend(self._kept_slot, common)
        self._kept_ids = group.prompt[:common]

    def known_prefix(self, ids: Sequence[int]) -> int:
        """How many of the first ``ids`` need not be computed again, as the cache is now."""
        common = 0
        for old, new in zip(self._kept_ids, ids, strict=False):
            if old != new:
                break
            common += 1
        return common

    def _keep(self, group: Group) -> None:
        """What the slot now holds; it is true even after an interrupt in the middle of a step."""
        reader = group.reader
        self._kept_ids = reader.ids[reader.window :][: reader.present]
