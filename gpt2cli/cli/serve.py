"""``gpt2cli serve``: the engine for other programs."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import params
from gpt2cli.cli.flags import EngineFlags, load_options, read_flags, read_settings
from gpt2cli.cli.keys import read_key_file
from gpt2cli.cli.loading import check_model, note_base, served_model
from gpt2cli.cli.pulling import add_adapter, resolve_or_pull
from gpt2cli.errors import UsageError
from gpt2cli.options import LoadOptions, check_whole
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.api.models import Served

EXAMPLES = """Examples:

  gpt2cli serve -m gpt2

  gpt2cli serve -m gpt2 -m distilgpt2 --port 9000

  gpt2cli serve --host 0.0.0.0 --api-key-file keys.txt --allow-host gpt2.example:8642

  gpt2cli serve --uds ~/.gpt2cli/socket
"""
HOST, PORT, SLOTS, QUEUE = "127.0.0.1", 8642, 32, 256
_SERVER = "Server"


def _option(*names: str, help: str, metavar: str | None = None) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=_SERVER, show_default=False
    )
    return info


def serve(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|DIR",
            help="A model directory, or a name; may be given several times. Default: the model setting, else "
            "the built-in model.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    adapter: params.Adapters = None,
    offline: params.Offline = None,
    allow_pickle: params.AllowPickle = None,
    host: Annotated[
        str,
        _option(
            "--host",
            metavar="ADDRESS",
            help="The address to listen on; one that other machines reach needs --api-key-file. Default: "
            f"{HOST}.",
        ),
    ] = HOST,
    port: Annotated[
        int, _option("--port", metavar="N", help=f"The port; 0 takes a free one. Default: {PORT}.")
    ] = PORT,
    uds: Annotated[
        Path | None,
        _option(
            "--uds",
            metavar="PATH",
            help="Listen on a socket file instead, which only you can open; its folder must be yours alone.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _option(
            "--api-key-file",
            metavar="FILE",
            help="Answer only requests with one of the keys in FILE, one per line; # begins a comment.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        _option(
            "--allow-host",
            metavar="NAME[:PORT]",
            help="Also answer requests whose Host header is exactly this; may be given several times.",
        ),
    ] = None,
    slots: Annotated[
        int, _option("--slots", metavar="N", help=f"The most texts that run at once. Default: {SLOTS}.")
    ] = SLOTS,
    queue: Annotated[
        int,
        _option(
            "--queue",
            metavar="N",
            help=f"The most requests that wait; more are answered 429. Default: {QUEUE}.",
        ),
    ] = QUEUE,
    log_json: Annotated[bool, _option("--log-json", metavar="", help="Write the log as JSON lines.")] = False,
    device: params.DeviceName = None,
    precision: params.PrecisionName = None,
    threads: params.Threads = None,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Serve models to other programs, over HTTP, as OpenAI's API."""
    _run(ctx.obj, read_flags(ServeFlags, ctx.params), debug)


@dataclass(frozen=True, kw_only=True)
class ServeFlags(EngineFlags):
    """The flags of `serve`."""

    model: list[str] | None
    adapter: list[str] | None
    offline: bool | None
    host: str
    port: int
    uds: Path | None
    api_key_file: Path | None
    allow_host: list[str] | None
    slots: int
    queue: int
    log_json: bool
    quiet: bool | None


def _run(terminal: Terminal, flags: ServeFlags, debug: bool) -> None:
    """Check everything, listen, and serve until a signal comes. Raises `Gpt2cliError`."""
    settings = read_settings(terminal, flags.quiet)
    check_whole("port", flags.port, 0, 65535, "0 to 65535")
    check_whole("slots", flags.slots, 1, 1024, "1 to 1024")
    check_whole("queue", flags.queue, 1, 100_000, "1 to 100000")
    _check_installed()
    from gpt2cli.serve.sockets import file_number, is_loopback, open_file, open_port, remove_file

    keys = _read_keys(terminal, flags.api_key_file) if flags.api_key_file is not None else []
    if flags.uds is None and not is_loopback(flags.host) and not keys:
        raise UsageError(
            f"--host {flags.host}: other machines reach this address, so a key is needed",
            hint="write one into a file: openssl rand -hex 24 > keys.txt; then --api-key-file keys.txt",
        )
    load = load_options(settings, flags)
    models = _find_models(terminal, settings, flags, load)
    with terminal.signals.deferred():
        from gpt2cli.serve.guard import Doors, Keys
        from gpt2cli.serve.log import Log
        from gpt2cli.serve.server import Plan, run

    listener = open_port(flags.host, flags.port) if flags.uds is None else open_file(flags.uds)
    made = file_number(flags.uds) if flags.uds is not None else None
    try:
        port = None if flags.uds is not None else listener.getsockname()[1]
        doors = Doors(_hosts(flags, port), Keys(keys), any_host=flags.uds is not None)
        write = None if terminal.quiet else terminal.write_stderr
        log = Log(write, as_json=flags.log_json, debug=debug)
        run(
            Plan(
                models,
                listener,
                doors,
                flags.slots,
                flags.queue,
                log,
                lambda: _say_where(log.say, flags, port, models),
            )
        )
    finally:
        listener.close()
        if flags.uds is not None and made is not None:
            remove_file(flags.uds, made)


def _check_installed() -> None:
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UsageError(
            "serve needs starlette and uvicorn, which are not installed", hint="pip install 'gpt2cli[serve]'"
        )


def _read_keys(terminal: Terminal, path: Path) -> list[str]:
    """The keys of a file, at least one. Raises `UsageError`."""
    keys = read_key_file(terminal, path)
    for key in keys:
        if len(key) < 16 or not key.isascii() or any(char.isspace() for char in key):
            raise UsageError(
                f"{path}: a key has at least 16 ASCII characters and no space", hint="openssl rand -hex 24"
            )
    return keys


def _find_models(
    terminal: Terminal, settings: Settings, flags: ServeFlags, load: LoadOptions
) -> list[Served]:
    """The models, their files checked, pulled where they are not on this disk. Raises `Gpt2cliError`."""
    names = flags.model or [settings.value("model")]
    served: list[Served] = []
    for name in names:
        resolved = resolve_or_pull(
            terminal, settings, name, None, offline=flags.offline, allow_pickle=load.allow_pickle
        )
        adapted = (
            add_adapter(terminal, settings, resolved, adapter, offline=flags.offline)
            for adapter in flags.adapter or ()
        )
        for each in (resolved, *adapted):
            note_base(terminal, each)
            model = served_model(check_model(each, load))
            if model.problem:
                terminal.warn(model.problem)
            if any(other.name == model.name for other in served):
                raise UsageError(f"--model {each.name}: there are two models of the name {model.name}")
            served.append(model)
    return served


def _hosts(flags: ServeFlags, port: int | None) -> frozenset[str]:
    """The values of the Host header that are answered, in small letters."""
    allowed = {name.lower() for name in flags.allow_host or ()}
    if port is not None:
        names = {"127.0.0.1", "localhost", "[::1]"}
        if flags.host not in ("0.0.0.0", "::"):
            names.add(f"[{flags.host}]" if ":" in flags.host else flags.host.lower())
        allowed |= {f"{name}:{port}" for name in names}
        if port == 80:
            allowed |= names
    return frozenset(allowed)


def _say_where(say: object, flags: ServeFlags, port: int | None, models: list[Served]) -> None:
    assert callable(say)
    for model in models:
        info = model.ready.info
        say(
            f"{one_line(model.name)}: {info.precision} on {info.device}, {info.threads} threads, "
            f"context {model.checkpoint.config.n_positions}, chat by {model.format.name}"
        )
    body = json_module.dumps({"model": models[0].name, "prompt": "Once upon a time", "max_tokens": 40})
    key = ' -H "Authorization: Bearer $KEY"' if flags.api_key_file else ""
    if flags.uds is not None:
        where, reach = str(flags.uds), f"--unix-socket {flags.uds} http://localhost"
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(flags.host, flags.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        where = reach = f"http://{host}:{port}"
    say(f"listening on {where}; Ctrl-C stops")
    say(f"try: curl {reach}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'")
