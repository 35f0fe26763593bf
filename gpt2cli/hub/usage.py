"""When a model was last used: the time of an empty file in the state directory.

The store may be shared, read-only or in another program's hands; the state directory is this user's.
Where it cannot be written, nothing is remembered and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from gpt2cli import paths
from gpt2cli.hub.store import StoredModel, folder_name


def mark_used(model: StoredModel) -> None:
    """Remember that ``model`` is used now."""
    path = _mark(model)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def last_used(model: StoredModel) -> datetime | None:
    """When ``model`` was used last, in UTC; None where that is not known."""
    try:
        return datetime.fromtimestamp(os.stat(_mark(model)).st_mtime, UTC)
    except (OSError, ValueError, OverflowError):
        return None


def forget(model: StoredModel) -> None:
    """Drop what is remembered of ``model``."""
    with contextlib.suppress(OSError):
        _mark(model).unlink()


def _mark(model: StoredModel) -> Path:
    revision = f"@{model.revision}" if model.revision else ""
    return paths.state_dir() / "used" / model.source / (folder_name(model.name) + revision)
