"""``gpt2cli logs``: the log of runs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli import paths
from gpt2cli.cli import params
from gpt2cli.cli.flags import read_settings
from gpt2cli.cli.run_log import TURN_ON, existing_log
from gpt2cli.errors import UsageError
from gpt2cli.options import GenerateOptions
from gpt2cli.settings import Settings, set_in_file, unset_in_file
from gpt2cli.terminal.jsonout import json_line
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import aligned, shown_age, tab_separated
from gpt2cli.text.sanitize import one_line, sanitize

if TYPE_CHECKING:
    from gpt2cli.runs.log import LoggedRun, RunLog

EXAMPLES = """Examples:

  gpt2cli logs on

  gpt2cli logs -n 5

  gpt2cli logs --search "dragon castle"

  gpt2cli logs show 12

  gpt2cli logs rm 12 13
"""
DEFAULT_COUNT = 20
PROMPT_COLUMNS = 32
MAX_SEARCH = 1000

app = typer.Typer(
    help="List the runs in the log, the newest first; turn the log on and off. It is off by default: prompts "
    "and texts are private. Only generate and chat are logged.",
    epilog=EXAMPLES,
    invoke_without_command=True,
)

RunId = Annotated[int, typer.Argument(metavar="ID", help="The number of a run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")]


@app.callback()
def root(
    ctx: typer.Context,
    count: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, max=10**9, help="List the N newest.")
    ] = DEFAULT_COUNT,
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="WORDS",
            help="Only runs in whose prompt and text all WORDS are.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    if ctx.invoked_subcommand is not None:
        given = {"-n": count != DEFAULT_COUNT, "--search": search is not None, "--json": json}
        for option in (name for name, there in given.items() if there):
            raise UsageError(
                f"{option} lists runs: it does not go with logs {ctx.invoked_subcommand}",
                hint=f"options of its own stand behind it: gpt2cli logs {ctx.invoked_subcommand} --help",
            )
        return
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, quiet)
    if search is not None and len(search) > MAX_SEARCH:
        raise UsageError(f"--search: at most {MAX_SEARCH} characters")
    log, runs = existing_log(), []
    if log is not None:
        with log:
            runs = log.newest(count, search)
        if log.unreadable:
            terminal.warn(f"{log.unreadable} runs cannot be read by this version, and are left out")
    if json:
        terminal.write(json_line([run.document() for run in runs]))
    elif terminal.stdout_is_terminal and runs:
        _list_on_terminal(terminal, runs)
    else:
        terminal.write(tab_separated([_row(run) for run in runs]))
    if not runs and search is None:
        _say_empty(terminal, settings)


def _say_empty(terminal: Terminal, settings: Settings) -> None:
    off = "" if settings.value("log") else f"; {TURN_ON} turns it on"
    terminal.note(f"the log is empty{off}")


def _row(run: LoggedRun) -> tuple[str, ...]:
    record = run.record
    texts = " --- ".join(text.text for text in record.texts)
    return (
        str(run.id),
        record.started,
        record.command,
        record.model.name,
        str(record.options.seed),
        record.prompt,
        texts,
    )


def _list_on_terminal(terminal: Terminal, runs: list[LoggedRun]) -> None:
    """A line a run: what was asked and how it went on, as far as there is room."""
    rows = []
    for run in runs:
        record = run.record
        prompt = " ".join(record.prompt.split())
        if len(prompt) > PROMPT_COLUMNS:
            # Of a conversation the end is what is new.
            cut = PROMPT_COLUMNS - 1
            prompt = f"…{prompt[-cut:]}" if record.command == "chat" else f"{prompt[:cut]}…"
        text = " ".join(record.texts[0].text.split())
        model = record.model.name.rpartition("/")[2]
        rows.append((str(run.id), shown_age(_time(record.started)), record.command, model[:24], prompt, text))
    lines = aligned(("ID", "WHEN", "BY", "MODEL", "PROMPT", "TEXT"), rows, right={0})
    width = max(20, terminal.width - 1)
    terminal.write(terminal.dim(lines[0][:width]) + "\n" + "".join(f"{line[:width]}\n" for line in lines[1:]))


def _time(text: str) -> datetime | None:
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return None
    return then if then.tzinfo is not None else None


@app.command("show")
def show(ctx: typer.Context, run_id: RunId, json: AsJson = False, debug: params.Debug = False) -> None:
    """Show one run: its model, options and engine, its prompt and texts. --json is what replay reads."""
    terminal: Terminal = ctx.obj
    with _existing() as log:
        run = log.get(run_id)
    if json:
        terminal.write(json_line(run.document()))
        return
    facts = _facts(run)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        terminal.write(f"{terminal.dim(name.ljust(width))}  {one_line(value)}\n")
    shown = sanitize if terminal.stdout_is_terminal else str
    for number, text in enumerate(run.record.texts, 1):
        several = f" {number}, seed {text.seed}" if len(run.record.texts) > 1 else ""
        terminal.write(terminal.dim(f"--- text{several}, ended by {one_line(text.finish_reason)} ---") + "\n")
        terminal.write(terminal.dim(shown(run.record.prompt)) + shown(text.text) + "\n")


def _facts(run: LoggedRun) -> list[tuple[str, str]]:
    record, engine = run.record, run.record.engine
    sha256 = f" (sha256 {record.model.sha256[:12]})" if record.model.sha256 else ""
    parts = [engine.device, engine.precision, *engine.kernels]
    if engine.threads is not None:
        parts.append(f"{engine.threads} thread{'' if engine.threads == 1 else 's'}")
    facts = [
        ("run", str(run.id)),
        ("started", record.started),
        ("command", record.command),
        ("session", record.session or ""),
        ("model", f"{record.model.name}{sha256}"),
        ("directory", run.directory or ""),
        ("options", _options(record.options)),
        ("engine", ", ".join(part for part in parts if part)),
        ("gpt2cli", record.version),
        ("tokens", _tokens(record.usage)),
    ]
    return [(name, value) for name, value in facts if value]


def _options(options: GenerateOptions) -> str:
    """The seed, and what is not as it is by default."""
    from gpt2cli.repl.options import differing

    given = {"seed": options.seed, **differing(options)}
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in given.items())


def _tokens(usage: Any) -> str:
    read, drawn = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return f"{read} read, {drawn} drawn" if isinstance(read, int) and isinstance(drawn, int) else ""


@app.command("rm")
def remove(
    ctx: typer.Context,
    run_ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID", help="Numbers of runs.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", metavar="", help="Remove all runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="With --all: do not ask.")] = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Remove runs from the log, and what they said from the disk."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    if bool(run_ids) == everything:
        raise UsageError("which runs?", hint="give their numbers (gpt2cli logs), or --all")
    with _existing() as log:
        if run_ids:
            log.remove(list(dict.fromkeys(run_ids)))
            return
        if not yes:
            if not (terminal.stdin_is_terminal and terminal.stderr_is_terminal):
                raise UsageError("rm --all asks first, and there is no terminal to ask on", hint="add --yes")
            if not terminal.ask(f"remove all {log.count()} runs?"):
                terminal.note("nothing was removed")
                return
        terminal.note(f"{log.remove_all()} runs removed")


@app.command("on")
def turn_on(ctx: typer.Context, quiet: params.Quiet = None, debug: params.Debug = False) -> None:
    """Keep a log of the runs of generate and chat from now on, with prompts and texts."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    set_in_file("log", True)
    terminal.note(f"runs are logged from now on, prompts and texts included, in {paths.log_file()}")
    _warn_of_environment(terminal, wanted=True)


@app.command("off")
def turn_off(ctx: typer.Context, quiet: params.Quiet = None, debug: params.Debug = False) -> None:
    """Keep no log any more; what is in it stays."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    unset_in_file("log")
    stays = "; what is there stays, and gpt2cli logs rm --all removes it" if paths.log_file().exists() else ""
    terminal.note(f"runs are not logged any more{stays}")
    _warn_of_environment(terminal, wanted=False)


def _warn_of_environment(terminal: Terminal, *, wanted: bool) -> None:
    if bool(Settings.load(terminal.environ).value("log")) != wanted:
        terminal.warn("GPT2CLI_LOG in the environment says otherwise, and comes first")


def _existing() -> RunLog:
    """The log. Raises `UsageError` where there is none."""
    log = existing_log()
    if log is None:
        raise UsageError("the log is empty", hint=f"{TURN_ON} turns it on")
    return log
