"""What `chat` is asked for: a command line that was found to be in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2cli.cli.chat_session import open_session
from gpt2cli.cli.flags import (
    LengthFlags,
    ModelFlags,
    PresetFlags,
    SamplingFlags,
    ServerFlags,
    given_options,
    load_options,
)
from gpt2cli.cli.loading import FoundModel, check_model, find_draft_model, resolve_model
from gpt2cli.cli.remote import Place, check_local_flags, find_place
from gpt2cli.cli.run_log import RunKeeper, open_keeper
from gpt2cli.errors import Gpt2cliError, ModelNotFound
from gpt2cli.hub.resolve import ResolvedModel, resolve, with_adapter
from gpt2cli.options import ChatFormat, GenerateOptions, LoadOptions, shown
from gpt2cli.remote.servers import check_sendable
from gpt2cli.repl.formats import choose_format
from gpt2cli.repl.sessions import Saved, Session
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

OPTIONS = ("max_new_tokens", "stop", "ignore_eos")
"""What `GenerateOptions` has of a conversation besides its sampling; the seed is the session's."""


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


def called(model: FoundModel | Place) -> str:
    """The model's name; of a directory its whole path, so that a session finds it again."""
    return model.name if isinstance(model, Place) else model.resolved.reference


def read_request(terminal: Terminal, settings: Settings, flags: ChatFlags) -> ChatRequest:
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
