"""What a training is asked for: options from flags and a recipe file, as `gpt2cli.train.options` has them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from gpt2cli.errors import UsageError

T = TypeVar("T")
MAX_RECIPE_BYTES = 2**20

LORA_FLAGS = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "keep": "keep_adapter",
}
DISTILL_FLAGS = {"layers": "student_layers", "temperature": "distill_temperature"}
EXPORT_FLAGS = {
    "temperature": "default_temperature",
    "repetition_penalty": "default_repetition_penalty",
    "no_repeat_ngram_size": "default_no_repeat_ngram_size",
}
RUN_ONLY = frozenset({"config", "resume", "jsonl", "quiet", "debug", "plot"})
"""Flags that a recipe file cannot set."""


def read_recipe_file(path: Path, allowed: Iterable[str]) -> dict[str, Any]:
    """The options in a TOML file, by the names of parameters. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})") from None
    known = set(allowed)
    options = {key.replace("-", "_"): value for key, value in table.items()}
    if unknown := sorted(options.keys() - known):
        raise UsageError(
            f"{path}: there is no option {unknown[0]}",
            hint="its keys are the flags of the command, without --",
        )
    return options


def build(
    options: type[T],
    given: Mapping[str, Any],
    renamed: Mapping[str, str] | None = None,
    over: T | None = None,
) -> T:
    """``options`` from what was given; the rest is as in ``over``, else the default.

    ``renamed`` maps a field to its flag, where the names differ.
    """
    flag_of = renamed or {}
    values = {}
    for field in fields(options):  # type: ignore[arg-type]
        flag = flag_of.get(field.name, field.name)
        if flag in given:
            value = given[flag]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        elif over is not None:
            values[field.name] = getattr(over, field.name)
    return options(**values)
