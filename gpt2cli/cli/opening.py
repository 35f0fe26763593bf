"""From a name on the command line to a loaded model, for the commands that look into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2cli.checkpoint import Checkpoint, open_checkpoint
from gpt2cli.cli.pull import is_offline, resolve_or_pull
from gpt2cli.errors import ModelFileError
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.hub.usage import mark_used
from gpt2cli.options import LoadOptions
from gpt2cli.settings import Settings
from gpt2cli.terminal.streams import Terminal

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model whose files were found to be in order; nothing is loaded yet."""

    model: ResolvedModel
    checkpoint: Checkpoint
    options: LoadOptions

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"model": self.model.name, "revision": self.model.revision}


def load_options(settings: Settings, flags: Mapping[str, Any]) -> LoadOptions:
    """The flags of the panel "Engine". Raises `InvalidOption`."""
    named = {name: flags[name] for name in ("device", "precision", "threads")}
    return LoadOptions(**settings.over(named), allow_pickle=bool(flags["allow_pickle"]))


def open_model(
    terminal: Terminal, settings: Settings, name: str | None, options: LoadOptions, flags: Mapping[str, Any]
) -> OpenModel:
    """Find the model ``name``, pull it where that is allowed, and check its files. Raises `Gpt2cliError`."""
    found = resolve_or_pull(
        terminal,
        settings.over({"model": name}).get("model"),
        flags.get("revision"),
        is_offline(terminal, settings, flags["offline"]),
        settings=settings,
        allow_pickle=options.allow_pickle,
    )
    return OpenModel(found, open_checkpoint(found.directory, allow_pickle=options.allow_pickle), options)


def load_engine(terminal: Terminal, opened: OpenModel) -> Engine:
    """Load the model; it has a tokenizer. Raises `Gpt2cliError`."""
    with terminal.signals.deferred():
        from gpt2cli.core.engine import Engine

    engine = Engine.from_checkpoint(opened.checkpoint, opened.options)
    if opened.model.stored is not None:
        mark_used(opened.model.stored)
    if engine.tokenizer is None:
        raise ModelFileError(
            f"{opened.checkpoint.directory}: it has no tokenizer",
            hint="a model directory holds tokenizer.json, or vocab.json and merges.txt",
        )
    return engine
