"""gpt2cli: run the GPT-2 family of language models in a terminal.

The names below load on first use (PEP 562), so that ``import gpt2cli`` costs nothing:

>>> from gpt2cli import Engine, GenerateOptions
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpt2cli.core.engine import Engine
    from gpt2cli.core.results import Choice, Chunk, Result, Stats
    from gpt2cli.errors import Gpt2cliError
    from gpt2cli.options import GenerateOptions, LoadOptions, SamplingOptions

_HOME_OF = {
    "Engine": "gpt2cli.core.engine",
    "Chunk": "gpt2cli.core.results",
    "Choice": "gpt2cli.core.results",
    "Result": "gpt2cli.core.results",
    "Stats": "gpt2cli.core.results",
    "GenerateOptions": "gpt2cli.options",
    "LoadOptions": "gpt2cli.options",
    "SamplingOptions": "gpt2cli.options",
    "Gpt2cliError": "gpt2cli.errors",
}

__all__ = [
    "Choice",
    "Chunk",
    "Engine",
    "GenerateOptions",
    "Gpt2cliError",
    "LoadOptions",
    "Result",
    "SamplingOptions",
    "Stats",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
