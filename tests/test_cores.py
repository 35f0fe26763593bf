"""How many threads compute."""

from __future__ import annotations

import pytest

from gpt2cli.core import cores
from gpt2cli.core.cores import default_threads, physical_cores


def test_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= physical_cores() <= 4096
    monkeypatch.setattr(cores, "_quota", lambda: 1)
    assert physical_cores() == 1


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    for nonsense in ("", "0", "many", "2,1"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert default_threads() == physical_cores()
