"""``gpt2cli chat``: a conversation, on a terminal or line by line."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import params, sampling_params
from gpt2cli.cli.chat_session import open_session
from gpt2cli.cli.flags import (
    LengthFlags,
    ModelFlags,
    PresetFlags,
    SamplingFlags,
    ServerFlags,
    given_options,
    load_options,
    read_flags,
    read_settings,
)
from gpt2cli.cli.loading import FoundModel, check_model, find_draft_model, resolve_model
from gpt2cli.cli.presets import use_preset
from gpt2cli.cli.prompt import read_lines
from gpt2cli.cli.remote import Place, another_place, check_local_flags, find_place
from gpt2cli.cli.run_log import RunKeeper, open_keeper
from gpt2cli.cli.turn_log import keep_turns
from gpt2cli.errors import Gpt2cliError, Interrupted, ModelNotFound
from gpt2cli.hub.converted import converted_stem
from gpt2cli.hub.resolve import ResolvedModel, resolve, with_adapter
from gpt2cli.hub.usage import mark_used
from gpt2cli.options import ChatFormat, GenerateOptions, LoadOptions, shown
from gpt2cli.remote.address import is_address
from gpt2cli.remote.servers import check_sendable
from gpt2cli.repl.formats import choose_format
from gpt2cli.repl.sessions import Saved, Session
from gpt2cli.settings import Settings
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
OPTIONS = ("max_new_tokens", "stop", "ignore_eos")
"""What `GenerateOptions` has of a conversation besides its sampling; the seed is the session's."""


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
    return _run(_read_request(terminal, settings, flags))


@dataclass(frozen=True, kw_only=True)
class ChatFlags(ModelFlags, PresetFlags, SamplingFlags, LengthFlags, ServerFlags):
    """The flags of `chat`."""

    name: str | None
    format: ChatFormat | None
    system: str | None
    resume: bool
    last: bool
    save: str | None
    no_save: bool
    seed: int | None
    strict: bool
    sanitize: bool
    json: bool
    draft: str | None
    quiet: bool | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A command line that was found to be in order, the model's files included; nothing is loaded yet."""

    terminal: Terminal
    settings: Settings
    model: FoundModel | Place
    load: LoadOptions
    draft: str
    draft_model: FoundModel | None
    format: str | None
    """None where only the server can tell which one suits."""
    system: str
    given: dict[str, Any]
    seed: int | None
    session: Session | None
    saved: Saved | None
    interactive: bool
    strict: bool
    sanitize: bool
    json: bool
    keeper: RunKeeper


def _called(model: FoundModel | Place) -> str:
    """The model's name; of a directory its whole path, so that a session finds it again."""
    return model.name if isinstance(model, Place) else model.resolved.reference


def _read_request(terminal: Terminal, settings: Settings, flags: ChatFlags) -> ChatRequest:
    """Check everything that can be checked without torch. Raises `Gpt2cliError`."""
    if not terminal.has_stdout:
        raise Gpt2cliError("standard output is closed")
    interactive = terminal.stdin_is_terminal and terminal.stdout_is_terminal and not flags.json
    given = given_options(settings, flags, *OPTIONS)
    GenerateOptions(seed=flags.seed, **given)
    load = load_options(settings, flags)
    session, saved = open_session(terminal, flags, interactive=interactive)
    try:
        named = flags.model is not None or flags.endpoint is not None
        of_session = None if named or saved is None else saved.model
        place = find_place(terminal, settings, of_session or flags.model, flags)
        if saved is not None:
            # Flags stand over what the session had, that over the settings.
            given = {**saved.options, **given_options(Settings({}), flags, *OPTIONS)}
        format: str | None = flags.format or (saved.format if saved and not named else None)
        model: FoundModel | Place
        draft, draft_model = "off", None
        if place is not None:
            check_local_flags(flags)
            check_sendable(["draft"] if flags.draft is not None else [])
            model = place
        else:
            model = found = check_model(_model(terminal, settings, flags, saved, load), load)
            wanted = {**given, **settings.over({"draft": flags.draft})}
            draft = found.checkpoint.generate_options(wanted).draft
            draft_model = find_draft_model(terminal, settings, flags, draft, found.load)
            format = choose_format(found.checkpoint, format, found.resolved.name).name
        return ChatRequest(
            terminal=terminal,
            settings=settings,
            model=model,
            load=load,
            draft=draft,
            draft_model=draft_model,
            format=format,
            system=(saved.system if saved else "") if flags.system is None else flags.system,
            given=given,
            seed=flags.seed if flags.seed is not None or not saved else saved.seed,
            session=session,
            saved=saved,
            interactive=interactive,
            strict=flags.strict,
            sanitize=flags.sanitize or terminal.stdout_is_terminal,
            json=flags.json,
            keeper=open_keeper(terminal, settings),
        )
    except BaseException:
        if session is not None:
            session.close()
        raise


def _model(
    terminal: Terminal, settings: Settings, flags: ChatFlags, saved: Saved | None, load: LoadOptions
) -> ResolvedModel:
    """The model of the flags, of the session, or of the settings. A session's is never pulled unasked."""
    if flags.model is None and saved is not None:
        try:
            found = resolve(saved.model, revision=flags.revision)
            return found if flags.adapter is None else with_adapter(found, flags.adapter)
        except ModelNotFound:
            raise ModelNotFound(
                f"the session was held with {shown(saved.model)}, which is not on this disk",
                hint="go on with another model: -m NAME; or pull this one",
            ) from None
    return resolve_model(terminal, settings, flags, load)


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
            model=_called(request.model),
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
            with ConversionProgress(terminal, _called(request.model)) as progress:
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
        model=_called(found),
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
