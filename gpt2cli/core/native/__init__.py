"""The CPU backend: a shared library of our own, driven by ctypes; neither torch nor a compiler is needed to
run it.

`library` loads it and declares its interface again (``src/gpt2.h``); `packed` keeps matrices in the layout
that the kernels read, in files that are mapped; `backend` puts a model together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2cli.checkpoint import Checkpoint
    from gpt2cli.core.native.backend import NativeBackend
    from gpt2cli.core.quantise import Kind

Progress = Callable[[int, int], None]
"""Called with the bytes converted so far, and those to convert in all."""


def available() -> bool:
    """Whether the library is there, and not turned off by ``GPT2CLI_NATIVE=0``."""
    return why_not() is None


def why_not() -> str | None:
    """Why the library cannot be used, in a few words; None where it can."""
    from gpt2cli.core.native.library import problem

    return problem()


def load(
    checkpoint: Checkpoint,
    precision: Kind,
    threads: int,
    converted: Path | None = None,
    progress: Progress | None = None,
) -> NativeBackend:
    """The backend for ``checkpoint`` in ``precision``.

    With ``converted`` (`LoadOptions.converted`) matrices that have to be converted are kept there and found
    again; ``progress`` is told of a conversion. Raises `ModelFileError`, and `Gpt2cliError` without memory.
    """
    from gpt2cli.core.native.backend import NativeBackend

    return NativeBackend(checkpoint, precision, threads, converted, progress)
