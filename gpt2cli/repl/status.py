"""The status bar: as much as fits in one line, the least needed left out first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from prompt_toolkit.utils import get_cwidth

from gpt2cli.text.sanitize import one_line

_SEPARATOR = " · "


@dataclass(frozen=True, slots=True)
class Status:
    """What the bar tells; what is not known yet is None."""

    model: str
    state: str = ""
    """Why there are no figures: ``loading``, ``no model``."""
    format: str | None = None
    seed: int | None = None
    used: int | None = None
    """Tokens of the context in use."""
    context: int | None = None
    tokens_per_s: float | None = None


def short_name(model: str) -> str:
    """A model's name; of a directory given by its whole path, the last part; of one on a server what follows
    the address.
    """
    if model.startswith(("http://", "https://")):
        return model.partition("#")[2] or model
    return os.path.basename(model.rstrip("/")) or model if os.path.isabs(model) else model


def status_line(status: Status, width: int) -> str:
    """The bar in at most ``width`` columns."""
    for parts in _shorter_and_shorter(status):
        line = _SEPARATOR.join(part for part in parts if part)
        if get_cwidth(line) <= width:
            return line
    name = one_line(status.model)
    rest = _used(status) or status.state
    room = width - get_cwidth(rest) - 1
    return f"{clipped(name, room)} {rest}" if room >= 4 else clipped(rest or name, width)


def _shorter_and_shorter(status: Status) -> Iterator[list[str]]:
    """The parts of the bar, from all of them to the two that matter most."""
    name, used = one_line(status.model), _used(status)
    seed = "" if status.seed is None else f"seed {status.seed}"
    speed = "" if status.tokens_per_s is None else f"{status.tokens_per_s:.1f} tokens/s"
    form = status.format or ""
    help_part = "/help" if not status.state else ""
    yield [name, status.state, form, seed, used and f"{used} tokens", speed, help_part]
    yield [name, status.state, form, seed, used and f"{used} tokens", speed]
    short_speed = "" if status.tokens_per_s is None else f"{status.tokens_per_s:.0f}/s"
    yield [name, status.state, form, seed, used, short_speed]
    yield [name, status.state, form, used, short_speed]
    yield [name, status.state, form, used]
    yield [name, status.state, used]


def _used(status: Status) -> str:
    if status.used is None or status.context is None:
        return ""
    return f"{status.used}/{status.context}"


def clipped(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, with an ellipsis where something is missing."""
    if get_cwidth(text) <= width:
        return text
    shown, used = "", 0
    for char in text:
        used += get_cwidth(char)
        if used > width - 1:
            break
        shown += char
    return shown + "…" if width > 0 else ""
