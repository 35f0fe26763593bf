"""``generate --repeat``: a prompt a line on stdin, each answered as it comes by a model loaded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from gpt2cli.cli.presets import Prompts
from gpt2cli.cli.prompt import MAX_PROMPT_BYTES, clean_typed
from gpt2cli.errors import Gpt2cliError, ReaderGone, UsageError
from gpt2cli.options import GenerateOptions, shown
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.reading import decode, without_mark

MARK = "---\n"
"""What stands after each text, as it stands between those of ``-n``."""
OPTION_NAMES = tuple(
    option.name
    for option in fields(GenerateOptions)
    # These are settled once the model is loaded; a bias is no plain value.
    if option.name not in ("rng", "draft", "logit_bias")
)
_FIELDS = ("prompt", "id", "fields")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for."""

    number: int
    """From 1."""
    prompt: str
    id: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def head(self) -> dict[str, Any]:
        """The first fields of its document."""
        return {"line": self.number, **({} if self.id is None else {"id": self.id})}


class RepeatFlags(Protocol):
    """The flags that do not go with ``--repeat``, or not with all that they can be."""

    @property
    def words(self) -> list[str] | None: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def file(self) -> Path | None: ...
    @property
    def json(self) -> bool: ...
    @property
    def jsonl(self) -> bool: ...
    @property
    def output(self) -> Path | None: ...
    @property
    def record(self) -> Path | None: ...
    @property
    def go_on(self) -> bool: ...
    @property
    def num_return_sequences(self) -> int | None: ...


def check_flags(flags: RepeatFlags, *, remote: bool) -> None:
    """Raise `UsageError` for what does not go with ``--repeat``; ``remote`` is a model on a server."""
    if remote:
        raise UsageError("--repeat is for a model on this machine", hint="gpt2cli batch asks a server")
    words = [*(flags.words or ())]
    if flags.prompt is not None or flags.file is not None or words not in ([], ["-"]):
        raise UsageError("--repeat reads its prompts from standard input, a line each")
    if flags.go_on or flags.record is not None:
        raise UsageError("--repeat makes many runs: it goes with neither --continue nor --record")
    if flags.json:
        raise UsageError("--repeat prints many documents", hint="--jsonl has a line for each")
    if flags.output is not None and str(flags.output) != "-":
        raise UsageError("--repeat writes to standard output", hint="leave --output out")
    if not flags.jsonl and flags.num_return_sequences not in (None, 1):
        raise UsageError("--repeat has one text for each line", hint="with --jsonl it may have several")


def run_repeat(
    terminal: Terminal,
    prompts: Prompts,
    answer: Callable[[Asked], None],
    *,
    as_json: bool,
    strict: bool,
) -> int:
    """Have every line answered; the exit code: 0, or that of the first error.

    An error is one line on stderr, and an object with ``error`` or a text that is empty, so that answer *n*
    is that of line *n*; the next line goes on. Raises what a signal asked for, and `ReaderGone`.
    """
    code = 0
    for number, line in _lines(terminal, as_json=as_json):
        try:
            answer(_read(terminal, prompts, number, line, as_json=as_json, strict=strict))
        except ReaderGone:
            raise
        except Gpt2cliError as error:
            code = code or error.exit_code
            if as_json:
                said = {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}
                terminal.write(json_line({"line": number, "error": said}))
            terminal.error(Gpt2cliError(f"line {number}: {error}"), error.hint)
        if not as_json:
            terminal.write(MARK)
        if terminal.signals.received is not None:
            raise terminal.signals.received
        # While a line is waited for there is nothing to lose.
        terminal.signals.soften(None)
    return code


def _lines(terminal: Terminal, *, as_json: bool) -> Iterator[tuple[int, str]]:
    """Each line of stdin with its number, from 1; of JSON the blank ones are left out."""
    for number, data in enumerate(terminal.lines(MAX_PROMPT_BYTES), 1):
        line = decode(without_mark(data) if number == 1 else data)
        if line.strip() or not as_json:
            yield number, line


def _read(
    terminal: Terminal, prompts: Prompts, number: int, line: str, *, as_json: bool, strict: bool
) -> Asked:
    """What a line asks for. Raises `UsageError`."""
    if not as_json:
        return Asked(number, prompts.fill(clean_typed(terminal, line, strict=strict)))
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("not valid JSON", hint='a text in quotes, or an object with a "prompt"') from None
    if isinstance(asked, str):
        asked = {"prompt": asked}
    if not isinstance(asked, dict):
        raise UsageError('neither a text nor an object with a "prompt"')
    text, given = asked.get("prompt"), asked.get("fields") or {}
    if not isinstance(text, str) and not (text is None and prompts.template is not None):
        raise UsageError('the object has no text under "prompt"')
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise UsageError("fields: an object of texts")
    for name in asked:
        if name not in OPTION_NAMES and name not in _FIELDS:
            raise UsageError(f"{shown(name)} is not an option", hint=f"options: {', '.join(OPTION_NAMES)}")
    options = {name: asked[name] for name in OPTION_NAMES if asked.get(name) is not None}
    for name in ("ignore_eos", "special_tokens"):
        if not isinstance(options.get(name, False), bool):
            raise UsageError(f"{name}: {shown(options[name])} is not true or false")
    if isinstance(options.get("stop"), str | list):
        stop = options["stop"]
        options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    filled = prompts.fill(text, given)
    return Asked(number, clean_typed(terminal, filled, strict=strict), asked.get("id"), options)
