"""What `batch` is asked for: its flags, found to go together, and what they say of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.flags import (
    LengthFlags,
    ModelFlags,
    SamplingFlags,
    ServerFlags,
    TemplateFlags,
    given_options,
)
from gpt2cli.cli.generate import read_bias
from gpt2cli.cli.loading import FoundModel
from gpt2cli.cli.presets import Prompts
from gpt2cli.errors import UsageError
from gpt2cli.jobs.shards import Shard
from gpt2cli.options import GenerateOptions, check_whole
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.batch.output import Form
    from gpt2cli.batch.rows import Fill
    from gpt2cli.jobs.manifest import Manifest
    from gpt2cli.remote.client import Client

_OTHERS = (
    *("max_new_tokens", "stop", "ignore_eos", "num_return_sequences"),
    *("presence_penalty", "frequency_penalty", "max_sentences"),
)
_NAMES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
OPTION_NAMES = {api: ours for ours, api in _NAMES.items()}
"""Options of ours by their names in the API, where these are other ones."""
MAX_SLOTS, MAX_WORKERS = 1024, 10_000


@dataclass(frozen=True, kw_only=True)
class BatchFlags(ModelFlags, TemplateFlags, SamplingFlags, LengthFlags, ServerFlags):
    """The flags of `batch`."""

    files: list[Path]
    output: Path | None
    simple: bool
    lines: bool
    from_jsonl: bool
    retry_errors: bool
    shard: str | None
    merge: bool
    ray: str | None
    workers: int | None
    slots: int
    max_sentences: int | None
    num_return_sequences: int | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: list[str] | None
    quiet: bool | None

    @property
    def form(self) -> Form:
        """How a row is written."""
        return "simple" if self.simple else "openai"

    @property
    def target(self) -> Path | None:
        """The file that rows are written to; None for stdout."""
        return None if self.output is None or str(self.output) == "-" else self.output

    def check(self) -> Shard | None:
        """The part that is to be done. Raises `UsageError` for what does not go together."""
        check_whole("slots", self.slots, 1, MAX_SLOTS, f"1 to {MAX_SLOTS}")
        if self.lines and self.from_jsonl:
            raise UsageError("--lines and --from-jsonl do not go together")
        if self.merge and (self.shard or self.retry_errors or self.ray):
            raise UsageError("--merge does not go with --shard, --retry-errors and --ray")
        if self.merge and self.target is None:
            raise UsageError("--merge needs -o FILE")
        if not self.merge and len(self.files) > 1:
            raise UsageError(
                "there is more than one file",
                hint="cat them into gpt2cli batch -, or put shards together with --merge",
            )
        if self.retry_errors and self.target is None:
            raise UsageError("--retry-errors needs -o FILE, where the errors are")
        if self.workers is not None:
            check_whole("workers", self.workers, 1, MAX_WORKERS, f"1 to {MAX_WORKERS}")
            if self.ray is None:
                raise UsageError("--workers is for --ray")
        return Shard.parse(self.shard)


@dataclass(frozen=True, slots=True)
class Job:
    """A command line that was found to be in order, the model's files included; nothing is loaded yet.

    ``model`` is one of this machine's, or a client that is connected to the server which has it.
    """

    terminal: Terminal
    flags: BatchFlags
    shard: Shard | None
    model: FoundModel | Client
    defaults: Mapping[str, Any]
    seed: int
    manifest: Manifest | None
    """Of the rows in the file of ``-o``; None for stdout."""
    prompts: Prompts

    @property
    def fill(self) -> Fill | None:
        """What makes a prompt of a row's; None where it stands as it is."""
        return None if self.prompts.template is None else self.prompts.fill


def row_defaults(settings: Settings, flags: BatchFlags) -> Mapping[str, Any]:
    """What flags and settings say of a row that does not say it itself, by the names of the API.

    Raises `UsageError`.
    """
    given = given_options(settings, flags, *_OTHERS)
    bias = read_bias(flags.logit_bias or [])
    GenerateOptions(**given, logit_bias=bias, seed=flags.seed)
    body = {_NAMES.get(name, name): value for name, value in given.items()}
    if "stop" in body:
        body["stop"] = list(body["stop"])
    if bias:
        body["logit_bias"] = {str(token): added for token, added in bias}
    return body
