"""``gpt2cli chat``: a conversation, on a terminal or line by line."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.chat_request import ChatFlags, ChatRequest, called, read_request
from gpt2cli.cli.flags import read_flags, read_settings
from gpt2cli.cli.presets import use_preset
from gpt2cli.cli.prompt import read_lines
from gpt2cli.cli.remote import Place, another_place
from gpt2cli.cli.turn_log import keep_turns
from gpt2cli.errors import Interrupted
from gpt2cli.hub.converted import converted_stem
from gpt2cli.hub.resolve import resolve
from gpt2cli.hub.usage import mark_used
from gpt2cli.options import ChatFormat
from gpt2cli.remote.address import is_address
from gpt2cli.repl.formats import choose_format
from gpt2cli.terminal.progress import ConversionProgress
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.repl.conversation import Conversation
    from gpt2cli.repl.speaker import Speaker

EXAMPLES = """Examples:

  gpt2cli chat

  gpt2cli chat -m gpt2 --format transcript --system "A talk between a sailor and a cook."

  gpt2cli pull smollm2-360m && gpt2cli chat -m smollm2-360m

  gpt2cli chat --last

  gpt2cli chat --resume my-story

  printf "Once upon a time\\nSuddenly\\n" | gpt2cli chat --seed 7

  echo "Hello" | gpt2cli chat --json | jq -r .answer
"""

_CHAT = "Conversation"


def chat(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="With --resume, the name of the session.", show_default=False),
    ] = None,
    preset: params.Preset = None,
    model: params.RemoteModel = None,
    adapter: params.Adapter = None,
    revision: params.Revision = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    format: Annotated[
        ChatFormat | None,
        typer.Option(
            "--format",
            help="How the conversation becomes one text. story: you and the model take turns writing "
            "it. transcript: lines that begin with User: and Assistant:. dialogpt: each turn "
            "ends with an end-of-text token. template: the model's own chat template. raw: "
            "exactly as typed. Default: template if the model has one, dialogpt for DialoGPT, "
            "otherwise story.",
            rich_help_panel=_CHAT,
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="TEXT",
            help="A text that stands above all turns, and stays when old turns are dropped.",
            rich_help_panel=_CHAT,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Continue the session NAME; without a name, choose one from a list.",
            rich_help_panel=_CHAT,
        ),
    ] = False,
    last: Annotated[
        bool,
        typer.Option("--last", metavar="", help="Continue the most recent session.", rich_help_panel=_CHAT),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="NAME",
            help="Save the session under this name. On a terminal every session is saved, by default "
            "under the time it began; without a terminal, only a session with a name is.",
            rich_help_panel=_CHAT,
            show_default=False,
        ),
    ] = None,
    no_save: Annotated[
        bool,
        typer.Option("--no-save", metavar="", help="Do not save the session.", rich_help_panel=_CHAT),
    ] = False,
    max_new_tokens: sampling_params.MaxNewTokens = None,
    stop: sampling_params.Stop = None,
    ignore_eos: sampling_params.IgnoreEos = None,
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
            help="The session's seed: the same seed and messages give the same answers. Default: a "
            "random one.",
            rich_help_panel="Sampling",
            show_default=False,
        ),
    ] = None,
    strict: params.Strict = False,
    sanitize: params.Sanitize = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar="",
            help="Without a terminal: print one JSON object per turn; a line of input may be one, too.",
            rich_help_panel="Output",
        ),
    ] = False,
    quiet: params.Quiet = None,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    draft: params.Draft = None,
    endpoint: params.Endpoint = None,
    api_key_file: params.ApiKeyFile = None,
    timeout: params.Timeout = None,
    debug: params.Debug = False,
) -> int:
    """Talk with a model, or take turns writing a story with it; sessions are saved as they go.

    Base models such as gpt2 and tiny continue texts and know no user or assistant: with them you take
    turns writing a story. Without a terminal every line of input is a turn, and every answer is one line.
    """
    terminal: Terminal = ctx.obj
    flags = read_flags(ChatFlags, ctx.params)
    settings = read_settings(terminal, flags.quiet)
    flags, _ = use_preset(terminal, flags, command="chat")
    return _run(read_request(terminal, settings, flags))


def _run(request: ChatRequest) -> int:
    try:
        if request.interactive:
            return _run_on_terminal(request)
        return _run_plain(request)
    finally:
        # Ctrl-C does not wait for the hash of a large model.
        with suppress(Interrupted):
            request.keeper.close()
        if request.session is not None:
            request.session.close()


def _run_on_terminal(request: ChatRequest) -> int:
    from gpt2cli.repl.chat import Start
    from gpt2cli.repl.loop import run_session

    def load_engine(name: str) -> tuple[Speaker, str, str | None]:
        from gpt2cli.core.engine import Engine

        if is_address(name):
            from gpt2cli.cli.chat_remotely import speaker

            place = another_place(request.terminal, request.settings, name, request.model)
            found = speaker(place, request.terminal.warn)
            return found, found.name, None
        model = resolve(name, offline=True)
        load = replace(request.load, converted=converted_stem(model))
        engine = Engine.load(model.directory, load, adapter=model.adapter)
        request.keeper.met(model)
        if model.stored is not None:
            mark_used(model.stored)
        return engine, model.reference, model.revision

    notes: list[str] = []
    session = request.session
    run_session(
        request.terminal,
        Start(
            model=called(request.model),
            context=None if isinstance(request.model, Place) else request.model.checkpoint.config.n_positions,
            load=lambda: _conversation(request, notes),
            load_engine=load_engine,
            editing_mode=request.settings.value("editing_mode") or "emacs",
            suggest=bool(request.settings.value("suggest")),
            resumed=session.name if session is not None and request.saved is not None else None,
            turns=request.saved.tree.path() if request.saved is not None else (),
            notes=notes,
        ),
    )
    return 0


def _run_plain(request: ChatRequest) -> int:
    terminal = request.terminal
    with terminal.signals.deferred():
        from gpt2cli.repl.plain import run_plain

        notes: list[str] = []
        if isinstance(request.model, Place):
            from gpt2cli.cli import chat_remotely
        else:
            with ConversionProgress(terminal, called(request.model)) as progress:
                conversation = _conversation(request, notes, progress)
    if isinstance(request.model, Place):
        # A server may let one wait.
        conversation = keep_turns(request.keeper, chat_remotely.conversation(request, request.model, notes))
    for note in notes:
        terminal.warn(note)
    conversation.warn = terminal.warn
    try:
        return run_plain(
            terminal,
            conversation,
            read_lines(terminal, strict=request.strict),
            as_json=request.json,
            sanitize=request.sanitize,
        )
    finally:
        if not request.json and conversation.tree.current and not conversation.options.greedy:
            terminal.note(f"seed {conversation.seed}")


def _conversation(
    request: ChatRequest, notes: list[str], progress: ConversionProgress | None = None
) -> Conversation:
    """Load the model and begin the conversation, or go on with it; ``notes`` are what to warn of."""
    from gpt2cli.core.engine import Engine
    from gpt2cli.repl.conversation import Conversation

    found = request.model
    if isinstance(found, Place):
        from gpt2cli.cli.chat_remotely import conversation

        return keep_turns(request.keeper, conversation(request, found, notes))
    assert request.format is not None
    engine = Engine.from_checkpoint(found.checkpoint, found.load, progress)
    if engine.tokenizer is None:
        # It says what is missing.
        engine.encode("")
    if found.resolved.stored is not None:
        mark_used(found.resolved.stored)
    small = request.draft_model
    if small is not None:
        engine.draft_with(Engine.from_checkpoint(small.checkpoint, small.load, progress))
    request.keeper.met(found.resolved)
    begun = Conversation(
        engine,
        choose_format(found.checkpoint, request.format, found.resolved.name),
        model=called(found),
        revision=found.resolved.revision,
        system=request.system,
        given=request.given,
        seed=request.seed,
        session=request.session,
        saved=request.saved,
        warn=notes.append,
        draft=request.draft,
    )
    return keep_turns(request.keeper, begun)
