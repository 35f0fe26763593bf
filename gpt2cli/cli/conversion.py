"""Converting the weights of a model that has just come, before its first use."""

from __future__ import annotations

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.errors import Gpt2cliError
from gpt2cli.hub.converted import converted_stem
from gpt2cli.hub.resolve import ResolvedModel
from gpt2cli.hub.store import StoredModel
from gpt2cli.terminal.progress import ConversionProgress
from gpt2cli.terminal.streams import Terminal


def convert_for_auto(terminal: Terminal, model: StoredModel) -> None:
    """Convert the weights that ``auto`` precision needs now, so that the first use does not wait for it.

    What goes wrong is told, and is no failure of what was asked for.
    """
    with terminal.signals.deferred():
        from gpt2cli.core.choose import convert_ahead
    try:
        checkpoint = open_checkpoint(model.directory)
        stem = converted_stem(ResolvedModel(model.name, model.directory, model.revision, model))
        if stem is not None:
            with ConversionProgress(terminal, model.name) as progress:
                convert_ahead(checkpoint, stem, progress)
    except Gpt2cliError as error:
        terminal.warn(f"{model.name} was not converted: {error}")
