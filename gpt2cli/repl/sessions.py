"""Sessions on disk."""

from __future__ import annotations


class Session:
    """A session's file."""
