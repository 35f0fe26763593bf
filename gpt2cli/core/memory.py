"""Whether a model, and the texts that run at once, fit the memory that is free."""

from __future__ import annotations

from pathlib import Path

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.backend import Backend
from gpt2cli.errors import Gpt2cliError

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
_BYTES_PER_LOGIT = 16
"""Logits in fp32, and in float64 while a token is drawn."""


def check_memory(checkpoint: Checkpoint, precision: str) -> None:
    """Raise `Gpt2cliError` when the weights will not fit the memory that is free now."""
    free = available_memory()
    needed = checkpoint.parameters * BYTES_PER_WEIGHT[precision]
    if free is not None and needed > free:
        raise Gpt2cliError(
            f"the model needs about {needed / 1e9:.1f} GB of memory in {precision}, "
            f"and {free / 1e9:.1f} GB are free",
            hint="close other programs, or try --precision int8",
        )


def check_cache_memory(backend: Backend, rows: int, tokens: int) -> None:
    """Raise `Gpt2cliError` when ``rows`` texts of ``tokens`` tokens will not fit the free memory."""
    free, config = available_memory(), backend.config
    kept = min(tokens, config.n_positions) * backend.bytes_per_token
    needed = rows * (kept + _BYTES_PER_LOGIT * config.vocab_size)
    if free is not None and rows > 1 and needed > free:
        raise Gpt2cliError(
            f"{rows} texts at once need about {needed / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free",
            hint="draw fewer at a time: text i of a run with seed S is the one of seed S+i alone",
        )


def available_memory() -> int | None:
    """Bytes that a new process may use without swapping; None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
