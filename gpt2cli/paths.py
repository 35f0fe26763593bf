"""Where things live on disk. ``GPT2CLI_HOME`` overrides all; else the platform's own places.

==============  ==================================  ===========================
function        on Linux                            under ``GPT2CLI_HOME``
==============  ==================================  ===========================
config_file     ~/.config/gpt2cli/config.toml       $GPT2CLI_HOME/config.toml
presets_dir     ~/.config/gpt2cli/presets           $GPT2CLI_HOME/presets
store_dir       ~/.local/share/gpt2cli/models       $GPT2CLI_HOME/models
cache_dir       ~/.cache/gpt2cli                    $GPT2CLI_HOME/cache
state_dir       ~/.local/state/gpt2cli              $GPT2CLI_HOME/state
log_file        ~/.local/state/gpt2cli/runs.sqlite3 …/state/runs.sqlite3
==============  ==================================  ===========================

Nothing here creates a directory: who writes creates.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP = "gpt2cli"


def _home() -> Path | None:
    home = os.environ.get("GPT2CLI_HOME")
    # pathlib's expanduser raises where there is no such user.
    return Path(os.path.expanduser(home)) if home else None


def config_file() -> Path:
    """The settings file."""
    home = _home()
    return (home or platformdirs.user_config_path(APP, appauthor=False)) / "config.toml"


def presets_dir() -> Path:
    """The user's presets, a file each."""
    return config_file().parent / "presets"


def store_dir() -> Path:
    """The models of our own store; `gpt2cli.hub.store` describes the layout."""
    home = _home()
    return (home or platformdirs.user_data_path(APP, appauthor=False)) / "models"


def cache_dir() -> Path:
    """What can be made again at any time."""
    home = _home()
    return home / "cache" if home else platformdirs.user_cache_path(APP, appauthor=False)


def state_dir() -> Path:
    """History and sessions."""
    home = _home()
    return home / "state" if home else platformdirs.user_state_path(APP, appauthor=False)


def log_file() -> Path:
    """The log of runs."""
    return state_dir() / "runs.sqlite3"
