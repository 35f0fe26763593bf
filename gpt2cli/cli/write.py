"""``gpt2cli write``: an editor in which the model writes along."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.flags import (
    ModelFlags,
    PresetFlags,
    SamplingFlags,
    given_options,
    load_options,
    read_flags,
    read_settings,
)
from gpt2cli.cli.loading import FoundModel, check_model, resolve_model
from gpt2cli.cli.presets import use_preset
from gpt2cli.errors import ModelFileError, Signalled, UsageError
from gpt2cli.hub.usage import mark_used
from gpt2cli.options import DEFAULT_SUGGESTED_TOKENS, MAX_SEED, GenerateOptions
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal, flush_standard_streams
from gpt2cli.text.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine

SWITCH_S = 0.0005
"""How long a key waits for Python's lock while the model draws; 0.005 is Python's own."""

EXAMPLES = """Examples:

  gpt2cli write

  gpt2cli write story.txt

  gpt2cli write -m gpt2 --top-p 0.9 --max-new-tokens 12 story.txt

  gpt2cli write --suggest --provenance story.txt
"""


def write(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The text to edit; it need not exist yet.", show_default=False),
    ] = None,
    preset: params.Preset = None,
    model: params.Model = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    max_new_tokens: sampling_params.SuggestedTokens = None,
    suggest: sampling_params.Suggest = None,
    temperature: sampling_params.Temperature = None,
    top_k: sampling_params.TopK = None,
    top_p: sampling_params.TopP = None,
    min_p: sampling_params.MinP = None,
    typical_p: sampling_params.TypicalP = None,
    repetition_penalty: sampling_params.RepetitionPenalty = None,
    no_repeat_ngram_size: sampling_params.NoRepeatNgramSize = None,
    greedy: sampling_params.Greedy = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            help="The session's seed: the same seed and the same keys give the same suggestions. Default: a "
            "random one.",
            rich_help_panel="Sampling",
            show_default=False,
        ),
    ] = None,
    provenance: Annotated[
        bool,
        typer.Option(
            "--provenance",
            metavar="",
            help="Also save FILE.provenance.json: who wrote which part, with the model's seeds and options. "
            "Once it is there, it is kept up to date without this option.",
            rich_help_panel="Output",
        ),
    ] = False,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: Annotated[
        int | None,
        params.option(
            params.ENGINE,
            "--threads",
            metavar="N",
            help="The number of CPU threads. Default: one per core, but one, which is left to the keys.",
        ),
    ] = None,
    debug: params.Debug = False,
) -> int:
    """Write a text in an editor, with suggestions by the model: Tab shows three, Enter takes one.

    Ctrl-S saves, Ctrl-Q leaves. What is not saved survives a crash: the next gpt2cli write of the same
    file offers it.
    """
    terminal: Terminal = ctx.obj
    flags = read_flags(WriteFlags, ctx.params)
    settings = read_settings(terminal, flags.quiet)
    flags, _ = use_preset(terminal, flags, command="write")
    return _run(_read_request(terminal, settings, flags))


@dataclass(frozen=True, kw_only=True)
class WriteFlags(ModelFlags, SamplingFlags, PresetFlags):
    """The flags of `write`."""

    file: Path | None
    max_new_tokens: int | None
    suggest: bool | None
    seed: int | None
    provenance: bool
    quiet: bool | None


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A command line that was found to be in order; the file is not read yet, and nothing is loaded."""

    terminal: Terminal
    file: Path | None
    model: FoundModel
    given: dict[str, Any]
    max_new_tokens: int
    seed: int
    provenance: bool
    suggest: bool
    editing_mode: str


def _read_request(terminal: Terminal, settings: Settings, flags: WriteFlags) -> WriteRequest:
    """Check everything that can be checked without the editor. Raises `Gpt2cliError`."""
    _check_terminal(terminal)
    given = given_options(settings, flags)
    length = DEFAULT_SUGGESTED_TOKENS if flags.max_new_tokens is None else flags.max_new_tokens
    GenerateOptions(**given, max_new_tokens=length, seed=flags.seed)
    load = load_options(settings, flags)
    found = check_model(resolve_model(terminal, settings, flags, load), load)
    if not has_tokenizer(found.resolved.directory):
        raise ModelFileError(
            f"{found.resolved.directory}: it has no tokenizer",
            hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
        )
    if length >= found.checkpoint.config.n_positions // 2:
        most = found.checkpoint.config.n_positions // 2 - 1
        raise UsageError(f"--max-new-tokens: the model's context leaves room for {most} at most")
    return WriteRequest(
        terminal=terminal,
        file=flags.file,
        model=found,
        given=given,
        max_new_tokens=length,
        seed=secrets.randbelow(MAX_SEED + 1) if flags.seed is None else flags.seed,
        provenance=flags.provenance,
        suggest=bool(settings.over({"suggest": flags.suggest}).get("suggest")),
        editing_mode=settings.value("editing_mode") or "emacs",
    )


def _check_terminal(terminal: Terminal) -> None:
    """Raise `UsageError` where there is no screen to write on."""
    if not (terminal.stdin_is_terminal and terminal.stdout_is_terminal):
        raise UsageError(
            "write is an editor and needs a terminal: neither stdin nor stdout may be a pipe or a file",
            hint="gpt2cli generate continues a text without one: gpt2cli generate -f FILE",
        )
    kind = terminal.environ.get("TERM", "dumb")
    if kind in ("dumb", "unknown"):
        raise UsageError(
            f"write needs a terminal whose cursor can be moved, and TERM is {kind}",
            hint="gpt2cli chat writes a text by turns on any terminal",
        )


def _run(request: WriteRequest) -> int:
    terminal = request.terminal
    with terminal.signals.deferred():
        from gpt2cli.editor.companion import Asked, Companion
        from gpt2cli.editor.opened import OpenText
        from gpt2cli.editor.screen import Screen
        from gpt2cli.repl.tty import Tty

    resolved = request.model.resolved
    asked = Asked(
        model=resolved.reference,
        revision=resolved.revision,
        given=request.given,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    opened = OpenText.open(request.file, with_provenance=request.provenance)
    code = 0
    sys.setswitchinterval(SWITCH_S)
    # Whatever goes wrong from here on, the text is still to be had.
    opened.keeps_recovery = True
    with Tty(terminal) as tty:
        screen = Screen(
            terminal,
            opened,
            lambda changed: Companion(lambda: _load(request), asked, changed),
            ghost=request.suggest,
            editing_mode=request.editing_mode,
        )
        try:
            screen.run(tty)
        except Signalled as signalled:
            code = signalled.exit_code
            raise
        finally:
            opened.close()
            if not screen.companion.close():
                # A thread that links a library when the interpreter ends takes the process down with it.
                tty.__exit__(None, None, None)
                flush_standard_streams()
                os._exit(code)
    return 0


def _load(request: WriteRequest) -> Engine:
    """Load the model, in a thread. Raises what `Engine.from_checkpoint` raises.

    Unless the user says how many threads compute, a core is left to what shows the keys.
    """
    from gpt2cli.core.cores import default_threads
    from gpt2cli.core.engine import Engine

    load = request.model.load
    if load.threads is None:
        load = replace(load, threads=max(1, default_threads() - 1))
    engine = Engine.from_checkpoint(request.model.checkpoint, load)
    if request.model.resolved.stored is not None:
        mark_used(request.model.resolved.stored)
    return engine
