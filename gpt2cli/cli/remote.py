"""Models on servers, as the command line names them: where, by which key, and what cannot be asked there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpt2cli.cli.flags import EngineFlags, ServerFlags
from gpt2cli.cli.keys import read_key_file
from gpt2cli.errors import InvalidOption, Unavailable, UsageError
from gpt2cli.options import shown
from gpt2cli.remote.address import KEY_VARIABLE, Endpoint, Key, is_address, parse_address
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.remote.client import Client

MAX_TIMEOUT_S = 86_400.0
_LOCAL_SETTINGS = {"rng": "default", "overflow": "error", "draft": "auto"}
"""Settings of a text that no server can be told of, and what they are where nothing is set."""


@dataclass(frozen=True, slots=True)
class Place:
    """A model on a server; it was not asked yet."""

    endpoint: Endpoint
    model: str | None
    key: Key | None
    timeout_s: float | None

    @property
    def name(self) -> str:
        """The address with the model."""
        return self.endpoint.url if self.model is None else f"{self.endpoint.url}#{self.model}"

    def head(self) -> dict[str, str | None]:
        """The first fields of a document."""
        return {"model": self.name, "revision": None}

    def client(self, say: Callable[[str], None]) -> Client:
        """A client, connected: the server has the model. Raises `Gpt2cliError`."""
        from gpt2cli.remote.client import Client
        from gpt2cli.remote.wire import DEFAULT_TIMEOUT_S, Site

        timeout = DEFAULT_TIMEOUT_S if self.timeout_s is None else self.timeout_s
        client = Client(Site(self.endpoint, self.key, timeout), say=say)
        client.connect(self.model)
        return client


class OfflineFlags(Protocol):
    """Flags of a command that may use the network."""

    @property
    def offline(self) -> bool | None: ...


def find_place(terminal: Terminal, settings: Settings, model: str | None, flags: ServerFlags) -> Place | None:
    """The server that the flags or the settings name; None where the model is one of this machine.

    Raises `UsageError`, `Unavailable` (offline).
    """
    wanted = settings.over({"model": model}).get("model")
    if flags.endpoint is not None:
        if is_address(model):
            raise UsageError("--endpoint and --model are both addresses", hint="give one of them")
        endpoint, name = parse_address(flags.endpoint)
        if model is not None and name is not None:
            raise UsageError("the model is given twice: by --model, and in --endpoint after the #")
        name = name if model is None else model
    elif is_address(wanted):
        endpoint, name = parse_address(str(wanted))
    else:
        for flag in ("api_key_file", "timeout"):
            if getattr(flags, flag) is not None:
                raise UsageError(
                    f"--{flag.replace('_', '-')} is for a model on a server",
                    hint="name the server: --endpoint URL, or -m URL#MODEL",
                )
        return None
    if flags.timeout is not None and not 0 < flags.timeout <= MAX_TIMEOUT_S:
        raise InvalidOption(
            "timeout", f"{shown(flags.timeout)} is not allowed; allowed: up to {MAX_TIMEOUT_S:g}"
        )
    offline = settings.over({"offline": getattr(flags, "offline", None)}).get("offline")
    if offline and not endpoint.is_loopback:
        raise Unavailable(f"{endpoint.url}: offline", hint="leave --offline out, or unset the setting")
    return Place(endpoint, name, _key(terminal, endpoint, flags.api_key_file), flags.timeout)


def another_place(terminal: Terminal, settings: Settings, address: str, before: object) -> Place:
    """The place of ``address``, where ``before`` is the model so far: its key goes to its own server only.

    Raises `UsageError`, `Unavailable`.
    """
    place = find_place(
        terminal, settings, address, ServerFlags(endpoint=None, api_key_file=None, timeout=None)
    )
    assert place is not None
    if isinstance(before, Place):
        same = place.endpoint == before.endpoint
        place = replace(place, key=before.key if same else None, timeout_s=before.timeout_s)
    return place


def _key(terminal: Terminal, endpoint: Endpoint, file: Path | None) -> Key | None:
    """The key of the file, else of the environment. Raises `UsageError`."""
    text = read_key_file(terminal, file)[0] if file is not None else terminal.environ.get(KEY_VARIABLE)
    if not text:
        return None
    key = Key(text)
    if not (endpoint.secure or endpoint.is_loopback):
        terminal.warn(f"the key is sent to {endpoint.url} without encryption; https would hide it")
    return key


def check_local_flags(flags: EngineFlags) -> None:
    """Raise `UsageError` for a flag that says how a model of this machine is loaded."""
    for name in (*(field.name for field in fields(EngineFlags)), "revision", "adapter"):
        # Typer has something empty for an option of several values that was not given.
        if getattr(flags, name, None) not in (None, [], ()):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a model on this machine",
                hint="leave it out: the server has loaded its model in its own way",
            )


def without_local_settings(terminal: Terminal, settings: Settings) -> Settings:
    """The settings without those that hold for this machine only; whoever set one is told."""
    for key, usual in _LOCAL_SETTINGS.items():
        if settings.value(key) not in (None, usual):
            terminal.warn(f"the setting {key} does not hold for a model on a server")
    return settings.without(_LOCAL_SETTINGS)
