"""What models there are on this disk, and what can be told of each without loading it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt2cli.adapter import Adapter, is_adapter
from gpt2cli.checkpoint import Checkpoint, ModelConfig, open_checkpoint, read_config
from gpt2cli.errors import Gpt2cliError
from gpt2cli.families import CausalConfig
from gpt2cli.hub.contents import read_adapter
from gpt2cli.hub.hfcache import cached_models
from gpt2cli.hub.registry import BUILTIN, PublishedModel, published_model
from gpt2cli.hub.resolve import ResolvedModel, builtin_directory, locate
from gpt2cli.hub.store import StoredModel, check_sizes, stored_models
from gpt2cli.hub.usage import last_used

PRECISION_OF_TYPE = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model or an adapter on this disk. What cannot be told is None, and ``problem`` then says why.

    ``name`` is what ``-m`` takes; ``parameters`` is the number of weights; ``precision`` is that of the
    weights on disk, ``pickle`` where it would take an unpickler to tell.
    """

    name: str
    stored: StoredModel
    size: int
    config: CausalConfig | None
    parameters: int | None
    precision: str | None
    last_used: datetime | None
    problem: str | None = None
    adapter: Adapter | None = None


def all_models() -> Iterator[StoredModel]:
    """The built-in model, those of the store, those of the Hugging Face cache."""
    directory = builtin_directory()
    if (directory / "config.json").is_file():
        yield StoredModel(BUILTIN, "", directory, "builtin")
    yield from stored_models()
    yield from cached_models()


def describe(model: StoredModel) -> LocalModel:
    """What can be told of a model; a damaged one is described too."""
    config, parameters, precision, problem, adapter = None, None, None, None, None
    try:
        if is_adapter(model.directory):
            adapter = read_adapter(model.directory)
            parameters, precision = adapter.parameters, _shown_types(adapter.types)
        else:
            config, _ = read_config(model.directory)
            # A damaged GPT-2 has its number of weights from its config.
            parameters = config.parameters if isinstance(config, ModelConfig) else None
            checkpoint = open_checkpoint(model.directory, allow_pickle=True)
            parameters, precision = checkpoint.parameters or None, _precision(checkpoint)
        check_sizes(model)
    except Gpt2cliError as error:
        problem = str(error)
    size = sum(size for _, size in _sizes([model.directory]))
    name, used = short_name(model), last_used(model)
    return LocalModel(name, model, size, config, parameters, precision, used, problem, adapter)


def short_name(model: StoredModel) -> str:
    """The alias of a published model, else the name."""
    known = published_as(model)
    return known.name if known else model.name


def published_as(model: StoredModel) -> PublishedModel | None:
    """Which published model this is; a directory is none, whatever its name."""
    return published_model(model.name) if model.source in ("store", "hf-cache") else None


def as_stored(found: ResolvedModel) -> StoredModel:
    """What was found, as a `StoredModel` also where it has no name."""
    return found.stored or StoredModel(found.name, "", found.directory, "directory")


def default_directory(setting: str | None) -> Path | None:
    """The directory of the model that runs without ``-m``, given the setting ``model``."""
    try:
        return locate(setting).directory
    except Gpt2cliError:
        return None


def disk_use(directories: Iterable[Path]) -> int:
    """The bytes of all files below the directories; what is linked to twice counts once."""
    return sum(dict(_sizes(directories)).values())


def _sizes(directories: Iterable[Path]) -> Iterator[tuple[tuple[int, int], int]]:
    """Device and inode, and the size, of every file."""
    for directory in directories:
        for folder, _, names in os.walk(directory):
            for name in names:
                try:
                    status = os.stat(os.path.join(folder, name))
                except OSError:
                    continue
                yield (status.st_dev, status.st_ino), status.st_size


def _precision(checkpoint: Checkpoint) -> str:
    if checkpoint.pickles:
        return "pickle"
    return _shown_types(info.dtype for info in checkpoint.tensors.values())


def _shown_types(types: Iterable[str]) -> str:
    return "+".join(sorted({PRECISION_OF_TYPE[each] for each in types}))
