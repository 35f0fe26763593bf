"""``gpt2cli rm``, ``import``, ``export`` and ``gc``: what changes the store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2cli import paths
from gpt2cli.adapter import is_adapter
from gpt2cli.checkpoint import Checkpoint, open_checkpoint, weight_files, with_import_hint
from gpt2cli.cli import params
from gpt2cli.cli.conversion import convert_for_auto
from gpt2cli.cli.flags import read_settings
from gpt2cli.cli.loading import note_base
from gpt2cli.errors import Gpt2cliError, ModelFileError, ModelNotFound, UsageError
from gpt2cli.files import as_created
from gpt2cli.hub.contents import check_contents
from gpt2cli.hub.garbage import PARTIAL_DAYS, discard, find_garbage, tree_size
from gpt2cli.hub.hfcache import find_cached
from gpt2cli.hub.inventory import as_stored, default_directory, short_name
from gpt2cli.hub.registry import BUILTIN, ModelName, is_name, parse_name, parse_reference
from gpt2cli.hub.resolve import locate_reference, resolve, split_adapter
from gpt2cli.hub.store import (
    INCOMING_PREFIX,
    StoredModel,
    add_local,
    check_name_is_free,
    check_sizes,
    copy_file,
    remove,
    stored_revisions,
)
from gpt2cli.hub.transfer import export_model, model_files, new_directory, side_files
from gpt2cli.hub.usage import forget
from gpt2cli.model_files import CARD, WEIGHT_FILES
from gpt2cli.terminal.streams import Terminal
from gpt2cli.terminal.table import aligned, shown_bytes, tab_separated
from gpt2cli.text.tokenizer import Tokenizer

RM_EXAMPLES = """Examples:

  gpt2cli rm distilgpt2

  gpt2cli rm --yes gpt2-medium my-stories

  gpt2cli rm gpt2@607a30d
"""

IMPORT_EXAMPLES = """Examples:

  gpt2cli import runs/stories --name my-stories

  gpt2cli generate -m my-stories "Once upon a time"
"""

EXPORT_EXAMPLES = """Examples:

  gpt2cli export my-stories exported

  gpt2cli export gpt2+my-adapter merged

  python -c 'from transformers import pipeline; print(pipeline("text-generation", "exported")("Once"))'
"""

GC_EXAMPLES = """Examples:

  gpt2cli gc --dry-run

  gpt2cli gc --all
"""


def rm(
    ctx: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="NAME", help="A model, or NAME@REVISION.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Remove models from the store: all revisions of each, or the one named."""
    terminal: Terminal = ctx.obj
    settings = read_settings(terminal, quiet)
    found = {model.directory: model for text in models for model in _stored(text)}
    sizes = {directory: tree_size(directory) for directory in found}
    if not yes:
        if not (terminal.stdin_is_terminal and terminal.stderr_is_terminal):
            raise UsageError("rm asks first, and there is no terminal to ask on", hint="add --yes")
        names = ", ".join(_title(model) for model in found.values())
        if not terminal.ask(f"remove {names} ({shown_bytes(sum(sizes.values()))})?"):
            terminal.note("nothing was removed")
            return
    default = default_directory(settings.value("model"))
    for directory, model in found.items():
        remove(model)
        forget(model)
        terminal.note(f"removed {_title(model)} ({shown_bytes(sizes[directory])})")
        if directory == default:
            terminal.warn(
                f"{short_name(model)} was the default model; gpt2cli config set model names another"
            )


def _stored(text: str) -> list[StoredModel]:
    """The revisions that ``text`` means. Raises `UsageError`, `ModelNotFound`."""
    if text == BUILTIN:
        raise UsageError(f"{BUILTIN} is a part of gpt2cli and cannot be removed")
    name, revision = parse_reference(text)
    found = stored_revisions(name, revision)
    if found:
        return found
    cached = find_cached(name, revision)
    if cached is not None:
        # <cache>/models--owner--name/snapshots/<revision>
        folder = cached.directory.parent.parent
        raise UsageError(
            f"{text} lies in the Hugging Face cache, which other programs use too",
            hint=f"if none needs it, delete {folder}",
        )
    raise ModelNotFound(f"{text}: no such model in the store", hint="gpt2cli list shows what is there")


def _title(model: StoredModel) -> str:
    return f"{short_name(model)}@{model.revision[:7]}" if model.revision else short_name(model)


def import_model(
    ctx: typer.Context,
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A model or adapter directory.",
            file_okay=False,
            exists=False,
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The model's name in the store. Default: the name of DIR."
        ),
    ] = None,
    allow_pickle: params.AllowPickle = None,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Copy the directory of a model or adapter into the store, after checking that it is complete."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    parsed = _name_of(directory, name)
    check_name_is_free(parsed)
    source: dict[str, Any] = {"kind": "import", "path": str(directory.absolute())}
    if is_adapter(directory):
        check_contents(directory)
        stored = add_local(directory, parsed, source, model_files(directory))
        terminal.note(f"imported the adapter {stored.name} ({shown_bytes(tree_size(stored.directory))})")
        return
    checkpoint = open_checkpoint(directory, allow_pickle=bool(allow_pickle))
    if Tokenizer.from_directory(directory) is None:
        terminal.warn(f"{directory} has no tokenizer: the model will take token ids only")
    if checkpoint.pickles:
        stored = _import_pickles(terminal, checkpoint, parsed, source)
    else:
        stored = add_local(directory, parsed, source, model_files(directory))
    terminal.note(f"imported {stored.name} ({shown_bytes(tree_size(stored.directory))})")
    convert_for_auto(terminal, stored)


def _name_of(directory: Path, given: str | None) -> ModelName:
    """The name to import under. Raises `UsageError`, `ModelNotFound`."""
    if not directory.is_dir():
        raise ModelNotFound(f"{directory}: no such directory")
    text = directory.resolve().name if given is None else given
    if given is None and not is_name(text):
        raise UsageError(f"the directory's name {text!r} cannot be a model's", hint="add --name NAME")
    if text == BUILTIN:
        raise UsageError(f"{BUILTIN} is the model that comes with gpt2cli", hint="add --name NAME")
    return parse_name(text)


def _import_pickles(
    terminal: Terminal, checkpoint: Checkpoint, name: ModelName, source: dict[str, Any]
) -> StoredModel:
    """Convert pickles to safetensors on the way in; the manifest says so."""
    with terminal.signals.deferred():
        from gpt2cli.core.convert import convert_pickles

    root = paths.store_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=root, prefix=INCOMING_PREFIX))
    except OSError as error:
        raise Gpt2cliError(f"cannot write to the store {root}: {error.strerror or error}") from None
    try:
        for path in (checkpoint.directory / "config.json", *weight_files(checkpoint.directory)):
            (work / path.name).symlink_to(path.absolute())
        convert_pickles(work)
        source["converted_from"] = [path.name for path in checkpoint.pickles]
        files = [*side_files(checkpoint.directory), work / WEIGHT_FILES[0]]
        return add_local(checkpoint.directory, name, source, files)
    except OSError as error:
        raise Gpt2cliError(f"cannot write to the store {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def export(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model, or NAME@REVISION; NAME+ADAPTER merges a LoRA adapter into it.",
            show_default=False,
        ),
    ],
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A new or empty directory.", file_okay=False, show_default=False),
    ],
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Copy a model out of the store, as a directory that transformers and other programs can load."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    if split_adapter(model)[1] is not None:
        _export_merged(terminal, model, directory)
        return
    found = as_stored(locate_reference(model))
    check_sizes(found)
    try:
        size = export_model(found, directory)
    except ModelFileError as error:
        raise with_import_hint(error, found.directory) from None
    terminal.note(f"exported {_title(found)} to {directory} ({shown_bytes(size)})")


def _export_merged(terminal: Terminal, model: str, target: Path) -> None:
    """Write a model with its adapter in its weights, all of it or nothing. Raises `Gpt2cliError`."""
    with terminal.signals.deferred():
        from gpt2cli.core.merge import write_merged

    found = resolve(model, offline=True)
    note_base(terminal, found)
    checkpoint = open_checkpoint(found.directory, adapter=found.adapter)
    # The base's card does not describe it.
    beside = [path for path in side_files(found.directory) if path.name not in ("config.json", CARD)]
    with new_directory(target, 4 * checkpoint.parameters) as incoming:
        for path in beside:
            copy_file(path, incoming / path.name)
        write_merged(checkpoint, incoming)
        for path in incoming.iterdir():
            as_created(path)
    terminal.note(f"exported {found.name}, merged, to {target} ({shown_bytes(tree_size(target))})")


def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also delete recent leftovers; not while a pull or an import is running."),
    ] = False,
    days: Annotated[
        int,
        typer.Option(
            "--days",
            metavar="N",
            min=0,
            max=36500,
            help="Delete interrupted downloads and old revisions after N days.",
        ),
    ] = PARTIAL_DAYS,
    quiet: params.Quiet = None,
    debug: params.Debug = False,
) -> None:
    """Delete what no model needs: interrupted downloads, leftovers, replaced revisions, old caches."""
    terminal: Terminal = ctx.obj
    read_settings(terminal, quiet)
    found = find_garbage(days=days, everything=everything)
    for garbage in () if dry_run else found:
        discard(garbage)
    rows = [(garbage.kind, str(garbage.size), str(garbage.path)) for garbage in found]
    if terminal.stdout_is_terminal and rows:
        shown = [(kind, shown_bytes(int(size)), path) for kind, size, path in rows]
        lines = aligned(("KIND", "SIZE", "PATH"), shown, right={1})
        terminal.write(terminal.dim(lines[0]) + "\n" + "".join(f"{line}\n" for line in lines[1:]))
    else:
        terminal.write(tab_separated(rows))
    total = shown_bytes(sum(garbage.size for garbage in found))
    terminal.note(f"{total} would be freed" if dry_run else f"{total} freed")
