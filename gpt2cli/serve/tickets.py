"""A request on its way to the worker and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from gpt2cli.api.models import Served
from gpt2cli.api.parts import Event, Part


@dataclass(eq=False)
class Ticket:
    """A request's parts. ``owner`` is its API key, ``connection`` where it came from.

    The worker reads ``parts`` and writes ``events``, of which None says that the client has left;
    ``cancelled`` is set by whoever does not want it any more.
    """

    model: Served
    parts: Sequence[Part]
    owner: Hashable
    connection: Hashable
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    came: float = field(default_factory=time.perf_counter)
    begun: bool = False
    """Whether a part of it runs or has run."""
    cancelled: bool = False
