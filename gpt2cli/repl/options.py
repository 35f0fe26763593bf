"""The options that can be changed in a conversation, and how they are typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from gpt2cli.errors import UsageError
from gpt2cli.options import MAX_SEED, GenerateOptions, check_whole, shown
from gpt2cli.settings import KEYS, parse_value

SAMPLING_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_new_tokens",
)
OPTION_NAMES = (*SAMPLING_NAMES, "stop", "ignore_eos", "seed")

_DEFAULTS = {field.name: field.default for field in fields(GenerateOptions)}


def option_name(name: str) -> str:
    """The option that ``name`` means: ``top-k`` or ``top_k``. Raises `UsageError`."""
    key = name.strip().lower().replace("-", "_")
    key = "temperature" if key == "temp" else key
    if key not in OPTION_NAMES:
        raise UsageError(f"{shown(name)} is not an option", hint=f"options: {', '.join(OPTION_NAMES)}")
    return key


def parse_option(name: str, text: str) -> tuple[str, Any]:
    """The option that ``name`` means, and its value.

    In a stop ``\\n`` and ``\\t`` stand for a line's end and a tab. Raises `UsageError`.
    """
    key = option_name(name)
    if key == "stop":
        stop = text.replace("\\n", "\n").replace("\\t", "\t")
        if not stop:
            raise UsageError("stop: a stop is a text of at least one character")
        return key, (stop,)
    if key == "ignore_eos":
        # A setting of the same kind knows how true and false are written.
        return key, parse_value("quiet", text, key)
    if key == "seed":
        try:
            seed = int(text)
        except ValueError:
            raise UsageError(f"seed: {shown(text)} is not a whole number") from None
        check_whole("seed", seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
        return key, seed
    assert key in KEYS
    return key, parse_value(key, text)


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Options as ``/regen`` takes them: ``temperature=1.2``. Raises `UsageError`."""
    overrides: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{shown(word)}: write NAME=VALUE, as in temperature=1.2")
        key, value = parse_option(name, text)
        overrides[key] = value
    return overrides


def differing(options: GenerateOptions) -> dict[str, Any]:
    """What of ``options`` is not the default; the seed, and what changes no text, is left out."""
    values = {name: getattr(options, name) for name in _DEFAULTS if name not in ("seed", "logprobs", "draft")}
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


def checked_options(found: Any) -> dict[str, Any]:
    """Options out of a file, as `differing` wrote them. Raises `UsageError`, `InvalidOption`."""
    if not isinstance(found, dict) or not found.keys() <= {*OPTION_NAMES} - {"seed"}:
        raise UsageError("these are no options")
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}
    GenerateOptions(**values)
    return values


def as_json(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they stand in a session file, which has lists and no tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}
