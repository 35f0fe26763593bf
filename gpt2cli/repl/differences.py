"""Where a conversation goes on as another than the one its session file has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpt2cli.repl.options import as_json
from gpt2cli.repl.sessions import Saved


def warnings(saved: Saved, model: str) -> Iterator[str]:
    """What the user is told when the session goes on with ``model``."""
    if saved.damaged:
        lines = "line" if saved.damaged == 1 else "lines"
        yield f"{saved.damaged} damaged {lines} of the session skipped"
    if saved.model != model:
        yield f"the session was held with {saved.model}, and goes on with {model}"


def changes(saved: Saved, header: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events that make of the session in the file the one of the ``header``."""
    if (saved.model, saved.revision) != (header["model"], header["revision"]):
        yield {"event": "model", **{key: header[key] for key in ("model", "revision", "format")}}
    elif saved.format != header["format"]:
        yield {"event": "format", "format": header["format"]}
    present = {"system": saved.system, "options": as_json(saved.options), "seed": saved.seed}
    for key, value in present.items():
        if value != header[key]:
            yield {"event": key, key: header[key]}
