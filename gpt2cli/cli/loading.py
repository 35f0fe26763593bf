"""The model of a command: found, checked, loaded; and a text as its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.adapter_config import read_adapter_config
from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.cli.flags import ModelFlags, load_options
from gpt2cli.cli.pulling import add_adapter, resolve_or_pull
from gpt2cli.errors import ModelFileError, ModelNotFound, Unavailable, UsageError
from gpt2cli.families import FamilyConfig
from gpt2cli.hub.converted import converted_stem
from gpt2cli.hub.manifest import read_manifest
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.hub.usage import mark_used
from gpt2cli.model_files import ADAPTER_CONFIG
from gpt2cli.options import DRAFTS, LoadOptions
from gpt2cli.settings import Settings
from gpt2cli.terminal.progress import ConversionProgress
from gpt2cli.terminal.streams import Terminal
from gpt2cli.text.sanitize import one_line

if TYPE_CHECKING:
    from gpt2cli.api.models import Served
    from gpt2cli.core.engine import Engine
    from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model whose files are in order; nothing is loaded yet."""

    resolved: ResolvedModel
    checkpoint: Checkpoint
    load: LoadOptions

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.resolved.name

    def head(self) -> dict[str, Any]:
        """The first fields of a document."""
        return {"model": self.resolved.name, "revision": self.resolved.revision}


def resolve_model(
    terminal: Terminal, settings: Settings, flags: ModelFlags, load: LoadOptions
) -> ResolvedModel:
    """The model of the flags or the settings, pulled where it is not on this disk. Raises `Gpt2cliError`.

    A person who named none is told which one it is.
    """
    wanted = settings.over({"model": flags.model}).get("model")
    resolved = resolve_or_pull(
        terminal, settings, wanted, flags.revision, offline=flags.offline, allow_pickle=load.allow_pickle
    )
    if flags.adapter is not None:
        resolved = add_adapter(terminal, settings, resolved, flags.adapter, offline=flags.offline)
    note_base(terminal, resolved)
    if wanted is None and terminal.stderr_is_terminal:
        terminal.note(f"{resolved.name}: the built-in story-teller; for GPT-2: gpt2cli pull distilgpt2")
    return resolved


def note_base(terminal: Terminal, resolved: ResolvedModel) -> None:
    """Say on stderr that the adapter was made for a model of another name; shapes decide whether it fits."""
    if resolved.adapter is None:
        return
    base = read_adapter_config(resolved.adapter / ADAPTER_CONFIG).base
    if base is not None and not resolved.is_called(base):
        terminal.note(f"{resolved.adapter}: it was made for {one_line(base)}")


def check_model(resolved: ResolvedModel, load: LoadOptions) -> FoundModel:
    """A model whose files are in order, to be loaded as ``load`` says. Raises `Gpt2cliError`."""
    checkpoint = open_checkpoint(resolved.directory, allow_pickle=load.allow_pickle, adapter=resolved.adapter)
    return FoundModel(resolved, checkpoint, replace(load, converted=converted_stem(resolved)))


def served_model(found: FoundModel) -> Served:
    """A model as requests name it. Raises `ModelFileError` where its tokenizer is not right."""
    from gpt2cli.api.models import Served
    from gpt2cli.text.tokenizer_files import has_tokenizer

    resolved = found.resolved
    if not has_tokenizer(resolved.directory):
        raise ModelFileError(
            f"{resolved.directory}: it has no tokenizer, so there are no texts to serve",
            hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
        )
    return Served(resolved.label, found.checkpoint, found.load)


def known_hashes(model: ResolvedModel) -> dict[str, str]:
    """The SHA-256 of a model's files as its manifest has them, by name; none where it has no manifest."""
    stored = model.stored
    manifest = stored.manifest if stored is not None else None
    if stored is not None and stored.source == "builtin":
        manifest = read_manifest(model.directory / "manifest.json")
    return {record.path: record.sha256 for record in manifest.files} if manifest is not None else {}


def model_hash(found: FoundModel) -> str:
    """What tells a model from all others, on any machine: a hash of its files. Raises `Gpt2cliError`."""
    from gpt2cli.jobs.manifest import model_hash as hash_of

    try:
        return hash_of(found.resolved.directory, known_hashes(found.resolved), adapter=found.resolved.adapter)
    except OSError as error:
        raise ModelFileError(f"{found.resolved.directory}: {error.strerror or error}") from None


def find_draft_model(
    terminal: Terminal, settings: Settings, flags: ModelFlags, name: str, load: LoadOptions
) -> FoundModel | None:
    """The model that ``--draft`` names, to be loaded as the other one is; None where it names none.

    Raises `Gpt2cliError`.
    """
    if name in DRAFTS:
        return None
    allowed = load.allow_pickle
    try:
        found = resolve_or_pull(terminal, settings, name, None, offline=flags.offline, allow_pickle=allowed)
    except (ModelNotFound, Unavailable) as error:
        raise type(error)(f"--draft: {error}", hint=f"{', '.join(DRAFTS)}, or a smaller model") from None
    return check_model(found, load)


def model_to_measure(terminal: Terminal, settings: Settings, flags: ModelFlags) -> FoundModel:
    """The model of an analysis command, pulled where it is not on this disk. Raises `Gpt2cliError`.

    What it measures is compared with other libraries' figures, to the last digits: ``auto`` is fp32.
    """
    load = load_options(settings, flags)
    if load.precision == "auto":
        load = replace(load, precision="fp32")
    return check_model(resolve_model(terminal, settings, flags, load), load)


def import_engine(terminal: Terminal) -> type[Engine]:
    """The class, imported where no signal can tear it."""
    with terminal.signals.deferred():
        from gpt2cli.core.engine import Engine
    return Engine


def load_engine(terminal: Terminal, found: FoundModel, *, to_look_inside: bool = False) -> Engine:
    """Load the model. Raises what `Engine.from_checkpoint` raises.

    Who wants `Engine.model` alone says so with ``to_look_inside``: then nothing else is prepared.
    """
    engine_class = import_engine(terminal)
    load = replace(found.load, backend="torch") if to_look_inside else found.load
    config, name = found.checkpoint.config, found.resolved.name
    if isinstance(config, FamilyConfig):
        # Importing transformers alone takes seconds.
        terminal.live(f"loading {name} …")
    try:
        with ConversionProgress(terminal, name) as progress:
            engine = engine_class.from_checkpoint(found.checkpoint, load, progress)
    finally:
        terminal.clear_live()
    if isinstance(config, FamilyConfig) and not config.tested:
        terminal.note(f"{name}: gpt2cli was not tested with models of type {config.architecture}")
    if found.resolved.stored is not None:
        mark_used(found.resolved.stored)
    return engine


def encode_text(engine: Engine, text: str, *, bos: bool = False, special_tokens: bool = False) -> list[int]:
    """The ids of a text, at least one, by the one rule of all commands for an empty text.

    It starts from the model's bos token, which ``bos`` puts before any other text too. Raises `UsageError`
    where the model has no such token, and what `Engine.encode` raises.
    """
    start = engine.config.bos_token_id
    if bos and start is None:
        raise UsageError("--bos: the model has no bos token")
    ids = engine.encode(text, special_tokens=special_tokens)
    # Some tokenizers put it there themselves.
    return [start, *ids] if bos and text and start is not None and ids[:1] != [start] else ids


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The model's tokenizer. Raises `ModelFileError` where it has none."""
    if engine.tokenizer is None:
        raise ModelFileError(
            f"{engine.checkpoint.directory}: it has no tokenizer",
            hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
        )
    return engine.tokenizer
