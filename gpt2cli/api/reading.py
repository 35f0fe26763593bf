"""From the body of a completion to what the worker is to do: prompts as tokens, options, parts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt2cli.api import limits
from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served
from gpt2cli.api.parts import Texts
from gpt2cli.core.engine import Engine
from gpt2cli.errors import InvalidOption, PromptTooLong, UsageError
from gpt2cli.options import MAX_SEED, GenerateOptions
from gpt2cli.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
TEXTS_AT_ONCE = 8
"""Texts of one prompt that are admitted together: more of them would keep other clients waiting."""
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("presence_penalty", "frequency_penalty", "ignore_eos", "max_sentences"),
)


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, and as the text that ``echo`` gives back."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Request:
    """What is to be answered, and how. ``texts`` of each prompt are drawn, the ``n`` best are returned."""

    model: Served
    prompts: Sequence[Prompt]
    parts: Sequence[Texts]
    seed: int
    n: int
    texts: int
    stream: bool
    include_usage: bool
    echo: bool = False
    logprobs: int | None = None
    return_token_ids: bool = False
    options: GenerateOptions = field(default_factory=GenerateOptions)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return tokenizer_of(self.model.ready)

    def seed_of(self, index: int) -> int:
        """The seed of the text at ``index`` among those that are drawn."""
        return (self.seed + index % self.texts) % (MAX_SEED + 1)


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The model's tokenizer. Raises `ApiError` where it has none."""
    if engine.tokenizer is None:
        raise ApiError(400, "the model has no tokenizer", param="model")
    return engine.tokenizer


def given(body: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field; null is the same as leaving it out."""
    value = body.get(name)
    return default if value is None else value


def read_completion(body: Mapping[str, Any], model: Served) -> Request:
    """What a body that is as the schema says asks for. Raises `ApiError`, `Gpt2cliError`."""
    if given(body, "suffix"):
        raise ApiError(400, "suffix: GPT-2 continues texts, it does not fill gaps in them", param="suffix")
    engine = model.ready
    n, texts = given(body, "n", 1), given(body, "best_of", given(body, "n", 1))
    stream, echo, logprobs = given(body, "stream", False), given(body, "echo", False), body.get("logprobs")
    if texts < n:
        raise ApiError(400, f"best_of: {texts} texts are fewer than n, {n}", param="best_of")
    if texts > n and stream:
        raise ApiError(400, "best_of: the best of several cannot be streamed", param="best_of")
    wanted = _prompts(given(body, "prompt", ""))
    if len(wanted) * texts > limits.MAX_TEXTS:
        raise ApiError(
            400, f"n: {len(wanted)} prompts times {texts} are more than {limits.MAX_TEXTS} texts", param="n"
        )
    max_tokens = given(body, "max_tokens", DEFAULT_MAX_TOKENS)
    # The best are those of the highest mean log-probability.
    detail = 0 if logprobs is None and texts > n else logprobs
    options = read_options(body, model, max_tokens, texts, logprobs=detail)
    try:
        read = [_read_prompt(engine, prompt, options, max_tokens) for prompt in wanted]
    except InvalidOption:
        raise
    except UsageError as error:
        raise ApiError(400, f"prompt: {error}", param="prompt") from None
    prompts = [prompt for prompt, _ in read]
    seed = read_seed(body)
    scored = logprobs if echo else None
    parts = [
        part
        for number, (prompt, new) in enumerate(read)
        for part in split(engine, number, prompt.ids, options, new, seed, scored, model.budget)
    ]
    return Request(
        model,
        prompts,
        parts,
        seed,
        n,
        texts,
        stream,
        bool(given(given(body, "stream_options", {}), "include_usage", False)),
        echo,
        logprobs,
        given(body, "return_token_ids", False),
        options,
    )


def _prompts(prompt: Any) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(token, int) for token in prompt):
        return [list(prompt)]
    return list(prompt)


def _read_prompt(
    engine: Engine, prompt: str | list[int], options: GenerateOptions, max_tokens: int
) -> tuple[Prompt, int]:
    """A prompt's tokens and text, and how many tokens may come."""
    if isinstance(prompt, str):
        check_text(prompt, "prompt")
    context = engine.config.n_positions
    if max_tokens:
        ids, _, new = engine.prepare(prompt, options)
    else:
        # Nothing is drawn: the whole context may be a prompt.
        if isinstance(prompt, str):
            check_length(engine, prompt)
        new, ids = 0, engine.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(ids) > context:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model's context is {context}")
        engine.prepare(ids[:1], options)
        if max(ids) >= engine.config.vocab_size:
            raise ApiError(
                400, f"prompt: the vocabulary has {engine.config.vocab_size} tokens", param="prompt"
            )
    text = prompt if isinstance(prompt, str) else tokenizer_of(engine).decode(ids)
    return Prompt(ids, text), new


def read_options(
    body: Mapping[str, Any],
    model: Served,
    max_tokens: int,
    texts: int,
    *,
    logprobs: int | None = None,
    stops: Sequence[str] = (),
) -> GenerateOptions:
    """The options of a request over the model's own defaults, without a seed. Raises `InvalidOption`."""
    wanted = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    if wanted.get("top_k") == -1:
        wanted["top_k"] = 0
    stop = given(body, "stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    for each in stop:
        check_text(each, "stop")
    return model.checkpoint.generate_options(
        {
            **wanted,
            "stop": (*stop, *stops),
            "logit_bias": _biases(given(body, "logit_bias", {}), model),
            "max_new_tokens": max(1, max_tokens),
            "num_return_sequences": texts,
            "logprobs": logprobs,
        }
    )


def _biases(given_biases: Mapping[str, float], model: Served) -> tuple[tuple[int, float], ...]:
    pairs: dict[int, float] = {int(token): bias for token, bias in given_biases.items()}
    size = model.checkpoint.config.vocab_size
    if pairs and max(pairs) >= size:
        raise ApiError(400, f"logit_bias: the vocabulary has {size} tokens", param="logit_bias")
    return tuple(pairs.items())


def read_seed(body: Mapping[str, Any]) -> int:
    """The seed of the first text: the one that is asked for, folded into 32 bits, or any."""
    seed: int | None = body.get("seed")
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed % (MAX_SEED + 1)


def check_text(text: str, param: str) -> None:
    """Raise `ApiError` for a lone surrogate, which JSON can hold and no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(
            400, f"{param}: the text is no Unicode: it has a lone surrogate", param=param
        ) from None


def check_length(engine: Engine, text: str) -> None:
    """Raise `PromptTooLong`, before it is tokenised, for a text that cannot fit the context."""
    longest = engine.tokenizer.longest_token if engine.tokenizer else None
    if longest and len(text) > longest * engine.config.n_positions:
        raise PromptTooLong(
            f"a text has {len(text)} characters, the model's context only {engine.config.n_positions} tokens"
        )


def split(
    engine: Engine,
    number: int,
    ids: list[int],
    options: GenerateOptions,
    new: int,
    seed: int,
    scored: int | None,
    budget: int,
) -> Iterator[Texts]:
    """The parts of one prompt: a few of its texts each, with the seeds that they have in the whole.

    A part is small enough for others to run beside it, and for the memory that there is.
    """
    each = min(len(ids) + new, engine.config.n_positions)
    most = max(1, min(TEXTS_AT_ONCE, budget // each - 1))
    texts, at = options.num_return_sequences, 0
    while at < texts:
        first = (seed + at) % (MAX_SEED + 1)
        count = min(most, texts - at, MAX_SEED + 1 - first)
        yield Texts(
            prompt=number,
            first=number * texts + at,
            ids=ids,
            options=replace(options, num_return_sequences=count, seed=first),
            max_new_tokens=new,
            eos_ids=engine.eos_ids(options),
            prompt_logprobs=scored if at == 0 else None,
        )
        at += count
