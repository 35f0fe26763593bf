"""What a directory of the store holds: a model, or an adapter of one."""

from __future__ import annotations

from pathlib import Path

from gpt2cli.adapter import Adapter, is_adapter, open_adapter
from gpt2cli.checkpoint import canonical_name, open_checkpoint
from gpt2cli.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TEXT_FILES


def check_contents(directory: Path, *, allow_pickle: bool = False) -> None:
    """Read and check the model, or the adapter, in ``directory``. Raises as `open_checkpoint` does."""
    if is_adapter(directory):
        read_adapter(directory)
    else:
        open_checkpoint(directory, allow_pickle=allow_pickle)


def read_adapter(directory: Path) -> Adapter:
    """The adapter in ``directory`` by the names of a checkpoint. Raises as `open_adapter` does."""
    return open_adapter(directory, lambda key: canonical_name(key) or key)


def adapter_files(directory: Path) -> list[Path]:
    """The files of an adapter, with its card and licence as far as they are there."""
    beside = [directory / name for name in TEXT_FILES if (directory / name).is_file()]
    return [directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS, *beside]
