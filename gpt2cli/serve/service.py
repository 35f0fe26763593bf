"""What the endpoints share: the models, the worker, the queue's limit, and whether requests are taken."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from starlette.types import Receive

from gpt2cli.api.errors import ApiError, unavailable
from gpt2cli.api.models import Served
from gpt2cli.api.parts import Ended, Event
from gpt2cli.serve.guard import Gone
from gpt2cli.serve.metrics import Metrics
from gpt2cli.serve.tickets import Ticket
from gpt2cli.serve.worker import Worker

T = TypeVar("T")


class Service:
    """One running server. ``most_waiting`` requests may wait for their turn; where there are several API
    ``keys``, no more of one than its share.
    """

    def __init__(
        self, models: Sequence[Served], worker: Worker, metrics: Metrics, most_waiting: int, keys: int = 0
    ) -> None:
        self.models, self.worker, self.metrics = models, worker, metrics
        self._most_waiting, self._share = most_waiting, max(1, most_waiting // max(1, keys))
        self._preparing: Counter[Hashable] = Counter()
        self.stopping = False
        self._loading = asyncio.Lock()
        # Tokenising and templates: one text at a time, and never in the event loop.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="gpt2cli reader")

    @property
    def state(self) -> str:
        """``ok``, ``loading``, ``stopping`` or ``failed``."""
        if self.worker.failed is not None:
            return "failed"
        if self.stopping:
            return "stopping"
        return "ok" if self.worker.ready.is_set() else "loading"

    def check_open(self) -> None:
        """Raise `ApiError` unless requests are taken now."""
        if (state := self.state) != "ok":
            messages = {"loading": "the model is being loaded", "stopping": "the server is stopping"}
            raise unavailable(messages.get(state, "the server has failed"))

    @contextmanager
    def preparing(self, owner: Hashable) -> Iterator[None]:
        """A request of a key is being read. Raises `ApiError` where too many wait."""
        mine = self._preparing[owner] + self.worker.waiting_of[owner]
        full = self._preparing.total() + self.worker.waiting >= self._most_waiting
        if full or mine >= self._share:
            raise ApiError(
                429,
                f"{self._most_waiting if full else mine} requests {'' if full else 'of this key '}"
                "wait already; try again",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._preparing[owner] += 1
        try:
            yield
        finally:
            self._preparing[owner] -= 1

    async def read(self, call: Callable[[], T]) -> T:
        """What ``call`` gives in the reader's thread. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, call)

    async def reference(self, model: Served) -> None:
        """Load the torch reference of a model, once; other requests go on meanwhile."""
        async with self._loading:
            await asyncio.to_thread(lambda: model.ready.model)

    def close(self) -> None:
        """Let go of the reader's thread."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def events(self, ticket: Ticket, receive: Receive) -> AsyncIterator[AsyncIterator[Event]]:
        """Hand a ticket to the worker; its events. Leaving early takes it back, as its client's leaving does.

        Raises `ApiError` unless requests are taken now. The events raise `ApiError` where it fails, `Gone`
        where the client leaves.
        """
        self.check_open()
        watch = asyncio.create_task(_watch(receive, ticket))
        self.worker.submit(ticket)
        left = len(ticket.parts)

        async def each() -> AsyncIterator[Event]:
            nonlocal left
            while left:
                event = await ticket.events.get()
                if event is None:
                    raise Gone
                if isinstance(event, ApiError):
                    left = 0
                    raise event
                left -= isinstance(event, Ended)
                yield event

        try:
            yield each()
        finally:
            watch.cancel()
            if left:
                self.worker.cancel(ticket)


async def _watch(receive: Receive, ticket: Ticket) -> None:
    """Put the end into a ticket's events when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    ticket.events.put_nowait(None)
