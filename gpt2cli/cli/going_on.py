"""``gpt2cli -c``: the last run in the log, to be gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gpt2cli.cli.flags import ModelFlags, PromptFlags
from gpt2cli.cli.prompt import join_parts, read_prompt
from gpt2cli.cli.run_log import TURN_ON, existing_log
from gpt2cli.errors import UsageError
from gpt2cli.options import GenerateOptions, Precision
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.reading import REPLACEMENT, cleaned

if TYPE_CHECKING:
    from gpt2cli.runs.log import LoggedRun

COMMANDS = ("generate",)
"""What is gone on with; `chat` has its sessions, and `write` its files."""
NOT_KEPT = ("seed", "num_return_sequences", "logprobs")
"""Options that hold for one run: a new seed is drawn, and the first of several texts goes on."""


F = TypeVar("F", bound=ModelFlags)


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last run, as the base of a new one."""

    logged: LoggedRun

    @property
    def text(self) -> str:
        """The prompt with its continuation, of several the first."""
        record = self.logged.record
        # A character that the end has torn cannot be gone on with, nor can a NUL that was drawn.
        return cleaned(record.prompt + record.texts[0].text.rstrip(REPLACEMENT))

    def with_model(self, flags: F) -> F:
        """``flags`` with the model of the last run, and its precision, where they name none."""
        record = self.logged.record
        if flags.model is not None or getattr(flags, "endpoint", None) is not None:
            return flags
        if record.on_server:
            return replace(flags, model=record.model.name)
        return replace(
            flags,
            model=self.logged.directory or record.model.name,
            revision=flags.revision or (None if self.logged.directory else record.model.revision),
            precision=flags.precision or cast(Precision | None, record.engine.precision),
        )

    def under(self, given: Mapping[str, Any], *, remote: bool = False) -> dict[str, Any]:
        """The options of the last run, and over them those ``given``; of a server's only what was set."""
        options = self.logged.record.options
        base = {
            option.name: getattr(options, option.name)
            for option in fields(GenerateOptions)
            if option.name not in NOT_KEPT and (not remote or getattr(options, option.name) != option.default)
        }
        # The length of the whole text was that of another text.
        base.pop("max_length", None)
        if given.keys() & {"max_length", "max_new_tokens"}:
            base.pop("max_new_tokens", None)
        # An empty list of biases is none that was given.
        over = {name: value for name, value in given.items() if name != "logit_bias" or value}
        return {**base, **over}

    def prompt(self, terminal: Terminal, flags: PromptFlags) -> str:
        """The text to continue: that of the last run, and after it what the command line gives."""
        if not (flags.words or flags.prompt is not None or flags.file is not None):
            return self.text
        return join_parts([self.text, read_prompt(terminal, flags)])


def last_run(settings: Settings) -> LastRun:
    """The last run in the log. Raises `UsageError` where there is none, or no log."""
    if not settings.value("log"):
        raise UsageError("there is no last run to go on with: the log is off", hint=f"{TURN_ON} turns it on")
    log = existing_log()
    found = None
    if log is not None:
        with log:
            found = log.last(*COMMANDS)
    if found is None:
        raise UsageError("there is no run in the log yet to go on with", hint='gpt2cli generate "PROMPT"')
    return LastRun(found)
