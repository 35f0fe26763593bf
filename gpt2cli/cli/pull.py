"""``gpt2cli pull``: bring models from the Hugging Face Hub, and the same for ``generate -m NAME``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import __version__
from gpt2cli.cli import params
from gpt2cli.cli.conversion import convert_for_auto
from gpt2cli.errors import Gpt2cliError, ModelNotFound, Unavailable, UsageError
from gpt2cli.hub.registry import ModelName, is_name, parse_name, parse_revision
from gpt2cli.hub.resolve import ResolvedModel, resolve
from gpt2cli.hub.store import StoredModel
from gpt2cli.settings import Settings, set_in_file
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.progress import PullProgress, seconds
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import shown_bytes
from gpt2cli.text.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    from gpt2cli.hub.pull import Pulled

PROGRESS_EVENT_EVERY_S = 0.5

EXAMPLES = """Examples:

  gpt2cli pull gpt2

  gpt2cli pull distilgpt2 gpt2-medium

  gpt2cli pull openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e
"""


def pull(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@REVISION]...",
            help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or owner/name on the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    revision: params.Revision = None,
    allow_pickle: params.ConvertPickle = False,
    offline: params.Offline = None,
    jsonl: params.Events = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Bring models from the Hugging Face Hub into the store; what was begun is resumed."""
    terminal: Terminal = ctx.obj
    settings = Settings.load(terminal.environ)
    terminal.quiet = bool(settings.over({"quiet": quiet}).get("quiet"))
    wanted = [_parse(text, revision) for text in models]
    if revision is not None and len(models) > 1:
        raise UsageError("--revision goes with one model", hint="write NAME@REVISION for each")
    without_network = is_offline(terminal, settings, offline)
    if jsonl:
        terminal.check_stdout()
    for name, at in wanted:
        if without_network:
            _say_present(terminal, name, at, jsonl=jsonl)
        else:
            pulled = pull_model(terminal, name, at, settings=settings, allow_pickle=allow_pickle, jsonl=jsonl)
            convert_for_auto(terminal, pulled.model)
            _make_default(terminal, name)


def _parse(text: str, revision: str | None) -> tuple[ModelName, str | None]:
    name, at, own = text.partition("@")
    if at and revision is not None:
        raise UsageError(f"{text}: --revision and @REVISION do not go together")
    wanted = own if at else revision
    return parse_name(name), None if wanted is None else parse_revision(wanted)


def is_offline(terminal: Terminal, settings: Settings, flag: bool | None) -> bool:
    """Whether the network is forbidden: by the flag, a setting, or huggingface_hub's own variable."""
    hub = terminal.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return hub or bool(settings.over({"offline": flag}).get("offline"))


def _say_present(terminal: Terminal, name: ModelName, revision: str | None, *, jsonl: bool) -> None:
    """Offline, a pull only finds what is there. Raises `Unavailable`."""
    found = resolve(name.given, revision=revision, offline=True)
    if jsonl:
        terminal.write(
            json_line(
                {
                    "event": "end",
                    "model": name.repository,
                    "commit": found.revision,
                    "directory": str(found.directory),
                    "present": True,
                }
            )
        )
    else:
        terminal.note(f"{name.given} is on this disk (offline: not compared with the Hub)")


def pull_model(
    terminal: Terminal,
    name: ModelName,
    revision: str | None,
    *,
    settings: Settings,
    allow_pickle: bool = False,
    jsonl: bool = False,
) -> Pulled:
    """Pull one model with progress on stderr, or events on stdout. Raises `Gpt2cliError`."""
    with terminal.signals.deferred():
        from gpt2cli.hub.pull import PullOptions
        from gpt2cli.hub.pull import pull as pull_from_hub
        from gpt2cli.hub.transport import Hub

    hub = Hub.from_environment(send_token=bool(settings.value("send_token")), version=__version__)
    options = PullOptions(convert=_convert if allow_pickle else None)
    started = time.monotonic()
    with PullProgress(terminal) as progress:
        report = _events(terminal, progress) if jsonl else progress
        pulled = pull_from_hub(name, revision, hub, report, options)
    took = time.monotonic() - started
    if jsonl:
        terminal.write(json_line(_end(name, pulled, took)))
    elif pulled.present:
        terminal.note(f"{name.given} is there already, and whole ({pulled.model.revision[:12]})")
    else:
        terminal.note(
            f"{name.given}: {shown_bytes(pulled.size)} in {seconds(took)} ({pulled.model.revision[:12]})"
        )
    return pulled


def _convert(directory: Path) -> None:
    from gpt2cli.core.convert import convert_pickles

    convert_pickles(directory)


def _events(terminal: Terminal, progress: PullProgress) -> Callable[[dict[str, Any]], None]:
    """Events as JSON lines; those of progress not too many."""
    last = float("-inf")

    def report(event: Mapping[str, Any]) -> None:
        nonlocal last
        if event["event"] == "progress":
            if time.monotonic() - last < PROGRESS_EVENT_EVERY_S:
                return
            last = time.monotonic()
        terminal.write(json_line(event))

    return report


def _end(name: ModelName, pulled: Pulled, took: float) -> dict[str, Any]:
    return {
        "event": "end",
        "model": name.repository,
        "commit": pulled.model.revision,
        "directory": str(pulled.model.directory),
        "size": pulled.size,
        "present": pulled.present,
        "seconds": round(took, 3),
    }


def _make_default(terminal: Terminal, name: ModelName) -> None:
    """The first model that the user pulls is the one used without -m."""
    if Settings.load(terminal.environ).get("model") is not None:
        return
    try:
        set_in_file("model", name.given)
    except Gpt2cliError as error:
        terminal.warn(f"{name.given} could not be made the default model: {error}")
        return
    terminal.note(f"{name.given} is now the model used without -m (gpt2cli config set model changes it)")


def resolve_or_pull(
    terminal: Terminal,
    model: str | None,
    revision: str | None,
    offline: bool,
    *,
    settings: Settings,
    allow_pickle: bool = False,
) -> ResolvedModel:
    """The directory of a model; what of it is not on this disk is pulled first, unless ``offline``.

    A Hugging Face cache holds a model without its tokenizer where transformers' ``AutoModel`` alone has
    loaded it: then that commit is pulled, which takes the files that are there and fetches the others.
    Raises as `gpt2cli.hub.resolve.resolve` and a pull do.
    """
    try:
        found = resolve(model, revision=revision, offline=offline)
    except ModelNotFound:
        if model is None or not is_name(model) or "/" not in parse_name(model).repository:
            raise
        if offline:
            raise Unavailable(f"{model}: not on this disk, and offline") from None
    else:
        if found.stored is None or not _lacks_tokenizer(found.stored):
            return found
        model, revision = found.name, found.revision
        lacking = f"{model}: the Hugging Face cache has it without its tokenizer"
        if offline:
            raise Unavailable(f"{lacking}, and offline", hint=f"gpt2cli pull {model} fetches what is missing")
        terminal.note(f"{lacking}; what is missing is fetched")
    pull_model(terminal, parse_name(model), revision, settings=settings, allow_pickle=allow_pickle)
    return resolve(model, revision=revision)


def _lacks_tokenizer(model: StoredModel) -> bool:
    """Whether a model of the Hugging Face cache has no tokenizer, and a pull may find one."""
    can_be_pulled = "/" in parse_name(model.name).repository
    return model.source == "hf-cache" and can_be_pulled and not has_tokenizer(model.directory)
