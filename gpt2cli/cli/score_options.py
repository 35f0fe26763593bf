"""What `score` is asked for: its flags, found to go together, and the job that its runs share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpt2cli.cli.flags import ModelFlags, PresetFlags, output_file
from gpt2cli.cli.formats import format_of
from gpt2cli.cli.sources import Source, TextsFlags
from gpt2cli.errors import UsageError
from gpt2cli.files import check_writable
from gpt2cli.jobs.shards import Shard
from gpt2cli.options import ScoreTask, check_whole
from gpt2cli.settings import Settings
from gpt2cli.terminal.plots import check_plot_path
from gpt2cli.terminal.streams import Terminal

Normalize = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True, kw_only=True)
class ScoreFlags(ModelFlags, PresetFlags, TextsFlags):
    """The flags of `score`."""

    stride: int | None
    window: int | None
    bos: bool
    eos: bool
    keep_newline: bool | None
    special_tokens: bool | None
    choices: str | None
    choice: list[str] | None
    normalize: Normalize | None
    task: ScoreTask | None
    limit: int | None
    tokens: bool
    top: int | None
    plot: Path | None
    json: bool
    jsonl: bool
    output: Path | None
    no_resume: bool
    shard: str | None
    quiet: bool | None
    batch_tokens: int | None

    def with_task_file(self) -> ScoreFlags:
        """``--task NAME FILE``: the argument is the file. Raises `UsageError`."""
        if not self.words or self.words == ["-"]:
            return self
        if len(self.words) > 1 or self.file is not None:
            raise UsageError("a task reads one file")
        return replace(self, words=None, file=Path(self.words[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """The flags of `score`, found to go together."""

    many: bool
    """Whether each line is a text."""
    records: bool
    field: str | None
    stride: int | None
    window: int | None
    bos: bool
    eos: bool
    keep_newline: bool
    """Whether a final newline of a file or of stdin belongs to the text."""
    special_tokens: bool
    strict: bool
    choices: tuple[str, ...]
    normalize: Normalize
    task: ScoreTask | None
    limit: int | None
    tokens: bool
    top: int
    plot: Path | None
    json: bool
    jsonl: bool
    output: Path | None
    resume: bool
    shard: Shard | None
    batch_tokens: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """What a command line asks for."""

    terminal: Terminal
    settings: Settings
    flags: ScoreFlags
    options: ScoreOptions
    source: Source


def read_options(terminal: Terminal, flags: ScoreFlags) -> ScoreOptions:
    """Check what can be checked before anything is read. Raises `UsageError`."""
    choices = (*(() if flags.choices is None else flags.choices.split(",")), *(flags.choice or ()))
    if not all(choices):
        raise UsageError("a choice is empty")
    for option, value, low in (
        ("top", flags.top, 0),
        ("limit", flags.limit, 1),
        ("batch_tokens", flags.batch_tokens, 1),
    ):
        if value is not None:
            check_whole(option, value, low, 10**7, f"{low} to {10**7}")
    output = output_file(terminal, flags.output)
    by_suffix = "text" if flags.json or flags.jsonl else format_of(output)
    options = ScoreOptions(
        many=flags.many,
        records=flags.as_records,
        field=flags.field,
        stride=flags.stride,
        window=flags.window,
        bos=flags.bos,
        eos=flags.eos,
        keep_newline=not choices if flags.keep_newline is None else flags.keep_newline,
        special_tokens=bool(flags.special_tokens),
        strict=flags.strict,
        choices=choices,
        normalize=flags.normalize or "none",
        task=flags.task,
        limit=flags.limit,
        tokens=flags.tokens or flags.top is not None,
        top=flags.top or 0,
        plot=flags.plot,
        json=flags.json or by_suffix == "json",
        jsonl=flags.jsonl or by_suffix == "jsonl",
        output=output,
        resume=not flags.no_resume,
        shard=Shard.parse(flags.shard),
        batch_tokens=flags.batch_tokens,
    )
    flags.check()
    _check(options)
    return options


def _check(options: ScoreOptions) -> None:
    """What does not go together. Raises `UsageError`."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl do not go together")
    if options.field is not None and not options.records:
        raise UsageError("--field is for --from-jsonl")
    if options.shard is not None and not (options.many and options.jsonl):
        raise UsageError("--shard is for --lines or --from-jsonl with --jsonl")
    if options.task is not None and options.choices:
        raise UsageError("--task and --choices do not go together")
    if options.task in ("cloze", "winograd") and not options.records:
        raise UsageError(
            f"--task {options.task} reads JSONL", hint="name the file .jsonl, or say --from-jsonl"
        )
    ranks = bool(options.choices) or options.task is not None
    if options.normalize != "none" and not options.choices:
        raise UsageError("--normalize is for --choices")
    if options.limit is not None and options.task is None:
        raise UsageError("--limit is for --task")
    others = {
        "top": options.top > 0,
        "tokens": options.tokens,
        "plot": options.plot is not None,
        "stride": options.stride is not None,
        "window": options.window is not None,
        "eos": options.eos,
        "shard": options.shard is not None,
    }
    for name, given in others.items():
        if ranks and given:
            raise UsageError(f"--{name} does not go with --choices and --task")
    if options.plot is not None:
        check_plot_path(options.plot)
        check_writable(options.plot)
