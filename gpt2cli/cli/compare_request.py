"""What `compare` is asked for: a command line that was found to be in order."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.analysis.prompt_variants import expand_template
from gpt2cli.cli.flags import (
    SAMPLING_NAMES,
    EngineFlags,
    LengthFlags,
    ModelFlags,
    PromptFlags,
    ServerFlags,
    check_greedy,
    read_settings,
)
from gpt2cli.cli.formats import Output, OutputFlags, read_output
from gpt2cli.cli.loading import FoundModel, model_to_measure
from gpt2cli.cli.prompt import clean_typed, read_prompt
from gpt2cli.cli.remote import Place, check_local_flags, find_place
from gpt2cli.errors import UsageError
from gpt2cli.options import MAX_SEED, GenerateOptions, check_whole
from gpt2cli.remote.servers import check_sendable
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

MAX_RUNS = 10_000
MAX_WORDS = 100
DEFAULT_WORDS = 10


@dataclass(frozen=True, kw_only=True)
class CompareFlags(EngineFlags, LengthFlags, OutputFlags, ServerFlags):
    """The flags of `compare`; most sampling options are lists here."""

    words: list[str] | None
    prompts: list[str] | None
    file: Path | None
    lines: bool
    vary: list[str] | None
    next_words: int | None
    given_words: str | None
    models: list[str] | None
    adapter: list[str] | None
    offline: bool | None
    temperature: list[float] | None
    top_k: list[int] | None
    top_p: list[float] | None
    min_p: list[float] | None
    typical_p: list[float] | None
    repetition_penalty: list[float] | None
    no_repeat_ngram_size: list[int] | None
    seed: list[int] | None
    greedy: bool | None
    special_tokens: bool | None
    strict: bool
    quiet: bool | None

    def of_model(self, name: str | None, adapter: str | None) -> ModelFlags:
        """The flags of one of the models, with one of the adapters or none."""
        return ModelFlags(
            model=name,
            adapter=adapter,
            revision=None,
            offline=self.offline,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True, slots=True)
class Variation:
    """A template: its text, and which of all prompts are its own, with what varies in each."""

    template: str
    prompts: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """A command line that was found to be in order; nothing is loaded yet."""

    terminal: Terminal
    output: Output
    models: tuple[FoundModel | Place, ...]
    prompts: tuple[str, ...]
    variations: tuple[Variation, ...]
    settings: tuple[dict[str, Any], ...]
    varied: tuple[str, ...]
    """The sampling options that have several values."""
    seeds: tuple[int, ...]
    next_words: int
    given_words: tuple[str, ...]


def read_request(terminal: Terminal, flags: CompareFlags) -> CompareRequest:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    settings = read_settings(terminal, flags.quiet)
    output = read_output(terminal, flags)
    combinations, varied = _combinations(settings, flags)
    seeds = _seeds(flags.seed)
    for given in combinations:
        GenerateOptions(**given, seed=seeds[0])
    given_words = _given_words(flags.given_words)
    prompts, variations = _prompts(terminal, flags)
    names: list[str | None] = [*dict.fromkeys(flags.models or ())] or [None]
    adapters = (None, *dict.fromkeys(flags.adapter or ()))
    runs = len(names) * len(adapters) * len(prompts) * len(combinations) * len(seeds)
    if runs > MAX_RUNS:
        raise UsageError(f"{runs} texts are more than {MAX_RUNS}", hint="give fewer of what is combined")
    models = tuple(_model(terminal, settings, flags, name, adapter) for name in names for adapter in adapters)
    next_words = _number_of_words(flags)
    if any(isinstance(model, Place) for model in models):
        next_words = _check_remote(flags, combinations, next_words)
    return CompareRequest(
        terminal=terminal,
        output=output,
        models=models,
        prompts=prompts,
        variations=variations,
        settings=combinations,
        varied=varied,
        seeds=seeds,
        next_words=next_words,
        given_words=given_words,
    )


def _model(
    terminal: Terminal, settings: Settings, flags: CompareFlags, name: str | None, adapter: str | None
) -> FoundModel | Place:
    place = find_place(terminal, settings, name, flags)
    return place or model_to_measure(terminal, settings, flags.of_model(name, adapter))


def _check_remote(flags: CompareFlags, combinations: Sequence[Mapping[str, Any]], next_words: int) -> int:
    """How many next words to show where a model is on a server. Raises `UsageError` for what it cannot do."""
    check_local_flags(flags)
    for given in combinations:
        check_sendable(sorted(given))
    if flags.next_words or flags.given_words is not None:
        flag = "--next" if flags.next_words else "--words"
        raise UsageError(
            f"{flag} needs the models on this machine", hint="leave it out: the texts are compared"
        )
    return 0


def _combinations(
    settings: Settings, flags: CompareFlags
) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Every combination of the sampling options, each as what is given of `GenerateOptions`; and the names of
    those with several values.
    """
    check_greedy(flags.greedy, flags.temperature)
    several = {name: getattr(flags, name) for name in SAMPLING_NAMES}
    lists = {name: list(dict.fromkeys(values)) for name, values in several.items() if values}
    if flags.greedy:
        lists["temperature"] = [0.0]
    fixed = settings.over({name: None for name in SAMPLING_NAMES if name not in lists})
    fixed |= settings.over({"max_new_tokens": flags.max_new_tokens})
    fixed |= {name: True for name in ("ignore_eos", "special_tokens") if getattr(flags, name)}
    if flags.stop:
        fixed["stop"] = tuple(flags.stop)
    values = itertools.product(*lists.values())
    combinations = tuple({**fixed, **dict(zip(lists, chosen, strict=True))} for chosen in values)
    return combinations, tuple(name for name, values in lists.items() if len(values) > 1)


def _seeds(given: list[int] | None) -> tuple[int, ...]:
    """The seeds, each once; one is drawn where none is given. Raises `InvalidOption`."""
    for seed in given or ():
        check_whole("seed", seed, 0, MAX_SEED, f"0 to {MAX_SEED}")
    return tuple(dict.fromkeys(given)) if given else (secrets.randbelow(MAX_SEED + 1),)


def _given_words(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not 1 <= len(words) <= MAX_WORDS:
        raise UsageError(f"--words takes 1 to {MAX_WORDS} words with a comma between them")
    return words


def _number_of_words(flags: CompareFlags) -> int:
    if flags.next_words is not None:
        if flags.given_words is not None:
            raise UsageError("--next and --words do not go together")
        check_whole("next", flags.next_words, 0, MAX_WORDS, f"0 to {MAX_WORDS}")
        return flags.next_words
    return DEFAULT_WORDS if flags.vary and flags.given_words is None else 0


def _prompts(terminal: Terminal, flags: CompareFlags) -> tuple[tuple[str, ...], tuple[Variation, ...]]:
    """All prompts, those of templates last. Raises `UsageError`."""
    words, file = flags.words or [], flags.file
    from_stdin = words[-1:] == ["-"] or (file is not None and str(file) == "-")
    if flags.lines and (flags.prompts or (words and words != ["-"])):
        raise UsageError("--lines is for --file or stdin")
    found = [clean_typed(terminal, text, strict=flags.strict) for text in flags.prompts or ()]
    if words or file is not None or from_stdin or not (found or flags.vary):
        text = read_prompt(terminal, PromptFlags(words=words, prompt=None, file=file, strict=flags.strict))
        found += (
            [line.removesuffix("\r") for line in text.split("\n") if line.strip()] if flags.lines else [text]
        )
    if flags.lines and not found:
        raise UsageError("there is no line with a prompt")
    variations = []
    for raw in flags.vary or ():
        template = clean_typed(terminal, raw, strict=flags.strict)
        variants = expand_template(template)
        places = range(len(found), len(found) + len(variants))
        labels = tuple(" · ".join(choice or "(nothing)" for choice in v.chosen) for v in variants)
        variations.append(Variation(template, tuple(places), labels))
        found += [variant.text for variant in variants]
    return tuple(found), tuple(variations)
