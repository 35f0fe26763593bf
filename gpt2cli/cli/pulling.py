"""Pulling a model with its progress shown: for `pull`, and for a command whose model is not on this disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli import __version__
from gpt2cli.errors import ModelNotFound, Unavailable, UsageError
from gpt2cli.hub.registry import ModelName, is_name, parse_name, parse_revision
from gpt2cli.hub.resolve import ResolvedModel, resolve, split_adapter, with_adapter
from gpt2cli.hub.store import StoredModel
from gpt2cli.settings import Settings
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.progress import PullProgress, seconds
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import shown_bytes
from gpt2cli.text.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    from gpt2cli.hub.pull import Pulled

PROGRESS_EVENT_EVERY_S = 0.5


def is_offline(terminal: Terminal, settings: Settings, flag: bool | None) -> bool:
    """Whether the network is forbidden: by the flag, a setting, or huggingface_hub's own variable."""
    hub = terminal.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return hub or bool(settings.over({"offline": flag}).get("offline"))


def resolve_or_pull(
    terminal: Terminal,
    settings: Settings,
    model: str | None,
    revision: str | None,
    *,
    offline: bool | None = None,
    allow_pickle: bool = False,
) -> ResolvedModel:
    """The directory of a model; what of it is not on this disk is pulled first, unless `is_offline`.

    A Hugging Face cache holds a model without its tokenizer where transformers' ``AutoModel`` alone has
    loaded it: then that commit is pulled, which takes the files that are there and fetches the others.
    So it is with both parts of ``MODEL+ADAPTER``. Raises as `gpt2cli.hub.resolve.resolve` and a pull do.
    """
    model, adapter = split_adapter(model)
    found = _base_or_pull(terminal, settings, model, revision, offline=offline, allow_pickle=allow_pickle)
    if adapter is None:
        return found
    return add_adapter(terminal, settings, found, adapter, offline=offline)


def add_adapter(
    terminal: Terminal,
    settings: Settings,
    model: ResolvedModel,
    adapter: str,
    *,
    offline: bool | None = None,
) -> ResolvedModel:
    """``model`` with an adapter, which is pulled where it is not on this disk.

    Raises as `with_adapter` and a pull do.
    """
    try:
        return with_adapter(model, adapter)
    except ModelNotFound:
        name, _, revision = adapter.partition("@")
        if os.path.isdir(adapter) or not is_name(name) or "/" not in name:
            raise
        if is_offline(terminal, settings, offline):
            raise Unavailable(f"{adapter}: not on this disk, and offline") from None
    pull_model(terminal, parse_name(name), parse_revision(revision) if revision else None, settings=settings)
    return with_adapter(model, adapter)


def resolve_plain(
    terminal: Terminal, settings: Settings, model: str | None, revision: str | None
) -> ResolvedModel:
    """`resolve_or_pull` for a training, which begins with the weights of files. Raises what that raises."""
    found = resolve_or_pull(terminal, settings, model, revision)
    if found.adapter is not None:
        raise UsageError(
            f"{found.name}: a training begins with a model, and not with an adapter",
            hint=f"merge them: gpt2cli export {found.name} DIR; then -m DIR",
        )
    return found


def _base_or_pull(
    terminal: Terminal,
    settings: Settings,
    model: str | None,
    revision: str | None,
    *,
    offline: bool | None,
    allow_pickle: bool,
) -> ResolvedModel:
    stay = is_offline(terminal, settings, offline)
    try:
        found = resolve(model, revision=revision, offline=stay)
    except ModelNotFound:
        if model is None or not is_name(model) or "/" not in parse_name(model).repository:
            raise
        if stay:
            raise Unavailable(f"{model}: not on this disk, and offline") from None
    else:
        if found.stored is None or not _lacks_tokenizer(found.stored):
            return found
        model, revision = found.name, found.revision
        lacking = f"{model}: the Hugging Face cache has it without its tokenizer"
        if stay:
            raise Unavailable(f"{lacking}, and offline", hint=f"gpt2cli pull {model} fetches what is missing")
        terminal.note(f"{lacking}; what is missing is fetched")
    pull_model(terminal, parse_name(model), revision, settings=settings, allow_pickle=allow_pickle)
    return resolve(model, revision=revision)


def _lacks_tokenizer(model: StoredModel) -> bool:
    """Whether a model of the Hugging Face cache has no tokenizer, and a pull may find one."""
    can_be_pulled = "/" in parse_name(model.name).repository
    return model.source == "hf-cache" and can_be_pulled and not has_tokenizer(model.directory)


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
