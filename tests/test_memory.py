"""What does not fit the free memory is refused before it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core import memory
from gpt2cli.core.engine import Engine
from gpt2cli.core.memory import check_memory
from gpt2cli.errors import Gpt2cliError


def test_too_little(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message before loading, instead of being killed while loading."""
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(
        Gpt2cliError, match=r"needs about 0.0 GB of memory in fp(16|32), and 0.0 GB are free"
    ) as e:
        Engine.load(tiny_model)
    assert e.value.exit_code == 1 and e.value.hint is not None and "int8" in e.value.hint


def test_it_depends_on_the_precision(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_model)
    for precision, size in (("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)):
        needed = checkpoint.config.parameters * size
        monkeypatch.setattr(memory, "available_memory", lambda needed=needed: needed)
        check_memory(checkpoint, precision)
        monkeypatch.setattr(memory, "available_memory", lambda needed=needed: needed - 1)
        with pytest.raises(Gpt2cliError):
            check_memory(checkpoint, precision)


def test_a_system_that_does_not_say(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check_memory(open_checkpoint(tiny_model), "fp32")


def test_this_system() -> None:
    free = memory.available_memory()
    assert free is None or 2**20 < free < 2**50
