"""The flags that commands share, as typed values, and what every command does with them first.

Typer hands a command its parameters (`gpt2cli.cli.params`); `read_flags` takes them out of ``ctx.params``,
once, into a dataclass whose fields have their names and types. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable
from gpt2cli.options import Device, LoadOptions, Precision, SamplingOptions
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

F = TypeVar("F")

SAMPLING_NAMES = tuple(field.name for field in fields(SamplingOptions))


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How a model is loaded."""

    device: Device | None
    precision: Precision | None
    threads: int | None
    allow_pickle: bool | None


@dataclass(frozen=True, kw_only=True)
class ModelFlags(EngineFlags):
    """Which model, and how it is loaded."""

    model: str | None
    adapter: str | None
    revision: str | None
    offline: bool | None


@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Which server has the model, and how it is asked; `gpt2cli.cli.remote` reads them."""

    endpoint: str | None
    api_key_file: Path | None
    timeout: float | None


@dataclass(frozen=True, kw_only=True)
class PromptFlags:
    """Where a text comes from; `gpt2cli.cli.prompt` and `gpt2cli.cli.sources` read it."""

    words: list[str] | None
    prompt: str | None
    file: Path | None
    strict: bool


@dataclass(frozen=True, kw_only=True)
class PresetFlags:
    """Which preset stands in for flags that are not given; `gpt2cli.cli.presets` reads it."""

    preset: str | None


@dataclass(frozen=True, kw_only=True)
class TemplateFlags(PresetFlags):
    """Which preset, and what its template is filled in with."""

    field: list[str] | None
    field_file: list[str] | None


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """The fields of `SamplingOptions`, and ``--greedy``."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    greedy: bool | None


@dataclass(frozen=True, kw_only=True)
class LengthFlags:
    """Where a text ends."""

    max_new_tokens: int | None
    stop: list[str] | None
    ignore_eos: bool | None


def read_flags(kind: type[F], given: Mapping[str, Any]) -> F:
    """The dataclass ``kind``, its fields from a command's parameters of the same names."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def read_settings(terminal: Terminal, quiet: bool | None) -> Settings:
    """The settings of this run; from here on ``terminal`` is quiet where they or ``--quiet`` say so."""
    settings = Settings.load(terminal.environ)
    terminal.quiet = bool(settings.over({"quiet": quiet}).get("quiet"))
    return settings


def load_options(settings: Settings, flags: EngineFlags) -> LoadOptions:
    """How flags and settings want the model loaded. Raises `InvalidOption`."""
    wanted = {"device": flags.device, "precision": flags.precision, "threads": flags.threads}
    return LoadOptions(**settings.over(wanted), allow_pickle=bool(flags.allow_pickle))


def given_options(settings: Settings, flags: SamplingFlags, *others: str) -> dict[str, Any]:
    """What flags and settings say of `GenerateOptions`: its sampling, and its fields ``others``.

    The rest is left to the model. Raises `UsageError`.
    """
    wanted: dict[str, Any] = {name: getattr(flags, name) for name in (*SAMPLING_NAMES, *others)}
    check_greedy(flags.greedy, flags.temperature)
    if flags.greedy:
        wanted["temperature"] = 0.0
    if "stop" in wanted:
        wanted["stop"] = tuple(wanted["stop"] or ()) or None
    return settings.over(wanted)


def check_greedy(greedy: bool | None, temperature: object) -> None:
    """Raise `UsageError` when a temperature, or a list of them, is given beside ``--greedy``."""
    if greedy and temperature:
        raise UsageError("--greedy and --temperature do not go together")


def output_file(terminal: Terminal, output: Path | None) -> Path | None:
    """The file of ``--output``; None for stdout, which ``-`` is too.

    Raises `UsageError` or `Gpt2cliError` where it cannot be written to.
    """
    if output is None or str(output) == "-":
        terminal.check_stdout()
        return None
    check_writable(output)
    return output
