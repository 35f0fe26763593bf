"""What can be asked of the engine: frozen dataclasses, checked when they are made.

Every default of the project stands here, once. The command line, the settings and the Python API
all build these; a value outside its range raises `InvalidOption` wherever it came from.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2cli.errors import InvalidOption

Rng = Literal["default", "transformers"]
Overflow = Literal["error", "truncate", "slide"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "int4"]
ChatFormat = Literal["story", "transcript", "dialogpt", "template", "raw"]
"""How `chat` makes one text of a conversation."""
ScoreTask = Literal["lambada", "cloze", "winograd"]
"""The tests that `score` knows."""
BackendName = Literal["auto", "native", "torch"]

DRAFTS = ("auto", "off", "lookup")
"""The drafters that need no model."""

MAX_SEED = 2**32 - 1
DEFAULT_MAX_NEW_TOKENS = 128
DEFAULT_SUGGESTED_TOKENS = 24
"""The length of a suggestion in the editor: a sentence or less."""
MIN_TEMPERATURE = 1e-3
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0
MAX_ADDED = 100.0
"""The most that a bias adds to a score; at -100 a token practically never comes."""
MAX_WHOLE = 2**63 - 1
"""The limit of a whole number that has none of its own."""


def shown(value: Any) -> str:
    """``value`` as a message shows it: never long, whatever it is."""
    # Python refuses to write a whole number of more than 4300 decimal digits.
    text = hex(value) if isinstance(value, int) and abs(value) > MAX_WHOLE else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def shown_names(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    return f"{shown(ordered[0])}{more}"


def check_number(option: str, value: Any, allowed: str, within: Callable[[float], bool]) -> None:
    """Raise `InvalidOption` unless ``value`` is a finite number ``within`` the range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max or not within(value):
        raise InvalidOption(option, f"{shown(value)} is not allowed; allowed: {allowed}")


def check_whole(option: str, value: Any, low: int, high: int | None, allowed: str) -> None:
    """Raise `InvalidOption` unless ``value`` is a whole number from ``low`` to ``high``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not low <= value <= (MAX_WHOLE if high is None else high):
        raise InvalidOption(option, f"{shown(value)} is not allowed; allowed: {allowed}")


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `InvalidOption` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InvalidOption(option, f"{shown(value)} is not allowed; allowed: {', '.join(choices)}")


def check_bias(pairs: Any) -> None:
    """Raise `InvalidOption` unless ``pairs`` are different tokens, each with a number."""
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidOption("logit_bias", "a bias is a pair of a token id and a number")
    for token, bias in pairs:
        check_whole("logit_bias", token, 0, None, "token ids from 0")
        check_number("logit_bias", bias, "-100 to 100", lambda added: abs(added) <= MAX_ADDED)
    if len({token for token, _ in pairs}) < len(pairs):
        raise InvalidOption("logit_bias", "a token has one bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is drawn. The defaults are those of transformers' ``generate(do_sample=True)``.

    Filters apply in transformers' order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858),
    no-repeat n-gram, temperature, top-k (Fan et al. 2018, arXiv 1805.04833), top-p (Holtzman et al.
    2019, arXiv 1904.09751), min-p (Nguyen et al. 2024, arXiv 2407.01082), typical (Meister et al.
    2022, arXiv 2202.00666). Raises `InvalidOption`.
    """

    temperature: float = 1.0
    """0 is greedy decoding; else at least 0.001."""
    top_k: int = 50
    """The number of tokens kept; 0 is off, more than the vocabulary is the vocabulary."""
    top_p: float = 1.0
    """The probability mass kept, in (0, 1]; 1 is off."""
    min_p: float = 0.0
    """Tokens below this share of the likeliest one's probability go, in [0, 1]; 0 is off."""
    typical_p: float = 1.0
    """The mass of locally typical tokens kept, in (0, 1]; 1 is off."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens already in the text, in [0.01, 100]; 1 is off."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens comes twice; 0 is off."""

    def __post_init__(self) -> None:
        share = "more than 0, up to 1 (off)"
        check_number(
            "temperature",
            self.temperature,
            "0 (greedy), or 0.001 and more",
            lambda t: t == 0 or t >= MIN_TEMPERATURE,
        )
        check_whole("top_k", self.top_k, 0, None, "0 (off), or a positive whole number")
        check_number("top_p", self.top_p, share, lambda p: 0 < p <= 1)
        check_number("min_p", self.min_p, "0 (off) to 1", lambda p: 0 <= p <= 1)
        check_number("typical_p", self.typical_p, share, lambda p: 0 < p <= 1)
        check_number(
            "repetition_penalty",
            self.repetition_penalty,
            "0.01 to 100, 1 is off",
            lambda penalty: MIN_PENALTY <= penalty <= MAX_PENALTY,
        )
        check_whole(
            "no_repeat_ngram_size", self.no_repeat_ngram_size, 0, None, "0 (off), or a positive whole number"
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken instead of drawing one."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(SamplingOptions):
    """One request to `Engine.stream` or `Engine.generate`. Raises `InvalidOption`."""

    max_new_tokens: int | None = None
    """The most tokens generated; 128 when neither this nor ``max_length`` is given."""
    max_length: int | None = None
    """The most tokens of prompt and continuation together, as in transformers."""
    num_return_sequences: int = 1
    """How many continuations are drawn, in one batch from one prefill."""
    seed: int | None = None
    """0 … 2**32-1; without one, a seed is drawn and reported. Sequence *i* has ``seed + i``."""
    rng: Rng = "default"
    """``transformers`` draws as transformers does after ``set_seed(seed)``."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    special_tokens: bool = False
    """Read ``<|endoftext|>`` in a prompt as the token, not as text."""
    overflow: Overflow = "error"
    """What happens when the context is full: see `gpt2cli generate --help`."""
    logprobs: int | None = None
    """Report log-probabilities before filtering: of the token, and of this many likeliest ones."""
    draft: str = "auto"
    """Where the drafts come from that a pass verifies together; the text does not depend on it. ``lookup``:
    from the text itself; ``auto``: likewise, where it pays; ``off``; else the name of the model that
    `Engine.draft_with` was given."""
    presence_penalty: float = 0.0
    """Taken from the score of each token that the continuation has already, in [-2, 2]; 0 is off."""
    frequency_penalty: float = 0.0
    """The same for each time that the token is there already, in [-2, 2]; 0 is off."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token and what is added to its score, in [-100, 100]."""
    max_sentences: int | None = None
    """The text ends after so many sentences (`gpt2cli.text.sentences`)."""

    def __post_init__(self) -> None:
        SamplingOptions.__post_init__(self)
        if self.max_new_tokens is not None and self.max_length is not None:
            raise InvalidOption("max_length", "not together with max-new-tokens")
        positive = "a positive whole number"
        for option in ("max_new_tokens", "max_length", "max_sentences"):
            if getattr(self, option) is not None:
                check_whole(option, getattr(self, option), 1, None, positive)
        check_whole("num_return_sequences", self.num_return_sequences, 1, 4096, "1 to 4096")
        if self.greedy and self.num_return_sequences > 1:
            raise InvalidOption(
                "num_return_sequences",
                "greedy decoding gives the same text every time; draw with a temperature above 0",
            )
        if self.seed is not None:
            high = MAX_SEED if self.rng == "transformers" else MAX_SEED - (self.num_return_sequences - 1)
            check_whole("seed", self.seed, 0, high, f"0 to {high}")
        check_choice("rng", self.rng, get_args(Rng))
        check_choice("overflow", self.overflow, get_args(Overflow))
        if not isinstance(self.stop, tuple | list) or not all(isinstance(s, str) and s for s in self.stop):
            raise InvalidOption("stop", "a stop is a text of at least one character")
        for option in ("ignore_eos", "special_tokens"):
            if not isinstance(getattr(self, option), bool):
                raise InvalidOption(option, f"{shown(getattr(self, option))} is not true or false")
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, None, "0 or a positive whole number")
        if not isinstance(self.draft, str) or not self.draft:
            raise InvalidOption("draft", f"{', '.join(DRAFTS)}, or the name of a model")
        for option in ("presence_penalty", "frequency_penalty"):
            check_number(option, getattr(self, option), "-2 to 2, 0 is off", lambda p: -2 <= p <= 2)
        check_bias(self.logit_bias)

    def settled(self) -> GenerateOptions:
        """These options with nothing left open: a seed is drawn, and the default length stands."""
        seed, length = self.seed, self.max_new_tokens
        if seed is None:
            seed = secrets.randbelow(MAX_SEED + 2 - self.num_return_sequences)
        if length is None and self.max_length is None:
            length = DEFAULT_MAX_NEW_TOKENS
        return replace(self, seed=seed, max_new_tokens=length)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each sequence. ``rng`` ``transformers`` draws all sequences from one seed."""
        if self.seed is None:
            raise ValueError("no seed: call settled() first")
        step = 0 if self.rng == "transformers" else 1
        return tuple(self.seed + step * i for i in range(self.num_return_sequences))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded. Raises `InvalidOption`."""

    device: Device = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    """CPU threads; the number of physical cores when not given."""
    allow_pickle: bool = False
    """Read ``.bin`` checkpoints (``torch.load`` with ``weights_only=True``) where no safetensors are."""
    converted: Path | None = None
    """Weights converted to another precision are kept in files that begin with this path, which must change
    with the checkpoint; without it each load converts."""
    backend: BackendName = "auto"
    """What computes; ``auto`` is the native library on a CPU where there is one, else torch."""

    def __post_init__(self) -> None:
        check_choice("device", self.device, get_args(Device))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("backend", self.backend, get_args(BackendName))
        if self.threads is not None:
            check_whole("threads", self.threads, 1, 1024, "1 to 1024")
