"""Where things live on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2cli import paths

PLACES = (paths.config_file, paths.store_dir, paths.cache_dir, paths.state_dir, paths.log_file)


def test_home_overrides_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path))
    names = [place().relative_to(tmp_path).as_posix() for place in PLACES]
    assert names == ["config.toml", "models", "cache", "state", "state/runs.sqlite3"]


def test_the_platform_decides_without_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty GPT2CLI_HOME is none: else the settings would lie in the working directory."""
    for home in (None, ""):
        if home is None:
            monkeypatch.delenv("GPT2CLI_HOME")
        else:
            monkeypatch.setenv("GPT2CLI_HOME", home)
        for kind in ("CONFIG", "DATA", "CACHE", "STATE"):
            monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
        assert all(place().is_absolute() for place in PLACES)
        assert len({place() for place in PLACES}) == len(PLACES)
        assert all("gpt2cli" in place().parts for place in PLACES)


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("GPT2CLI_HOME", os.path.join("~", "g"))
    assert paths.config_file() == tmp_path / "g" / "config.toml"


def test_a_tilde_of_nobody_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib's expanduser raises RuntimeError, which would be a traceback of every command."""
    monkeypatch.setenv("GPT2CLI_HOME", "~no-such-user-here/g")
    assert paths.config_file() == Path("~no-such-user-here/g/config.toml")


def test_looking_creates_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "new"))
    for place in PLACES:
        place()
    assert not (tmp_path / "new").exists()
