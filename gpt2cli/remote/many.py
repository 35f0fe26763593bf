"""Many requests at once, over a bounded number of connections: what is finished is yielded as it comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpt2cli.errors import Gpt2cliError
from gpt2cli.remote.asking import Request
from gpt2cli.remote.client import Client
from gpt2cli.remote.pieces import Text, Usage
from gpt2cli.remote.wire import Stop, Stopped

K = TypeVar("K")

CONNECTIONS = 16
LEAVE_S = 2.0


@dataclass(frozen=True, slots=True)
class Finished(Generic[K]):
    """What became of one request. With an ``error`` there are the texts so far, or none."""

    key: K
    texts: tuple[Text, ...]
    usage: Usage
    error: Gpt2cliError | None = None


def collect(client: Client, key: K, request: Request, stop: Stop | None = None) -> Finished[K]:
    """One request, to its end. Raises `Stopped`; whatever else goes wrong is in what it returns."""
    texts = tuple(Text(index, seed) for index, seed in enumerate(request.options.seeds))
    try:
        stream = client.stream(request, stop)
    except Gpt2cliError as error:
        return Finished(key, (), Usage(), error)
    for piece in stream:
        texts[piece.sequence].add(piece)
    if stop is not None and stop.is_set:
        raise Stopped
    return Finished(key, texts, stream.usage, stream.error)


class _Workers(Generic[K]):
    """Threads that take rows and put down what is finished."""

    def __init__(self, client: Client, rows: Iterable[tuple[K, Request]], connections: int) -> None:
        self.done: queue.Queue[Finished[K] | BaseException | None] = queue.Queue(connections)
        self._client, self._source = client, iter(rows)
        self._stop, self._lock = Stop(), threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(connections)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End all requests."""
        self._stop.set()
        for thread in self._threads:
            # One may wait for the next row, which nobody can end.
            thread.join(LEAVE_S)

    def _work(self) -> None:
        try:
            while not self._stop.is_set:
                with self._lock:
                    row = next(self._source, None)
                if row is None:
                    break
                self._put(collect(self._client, *row, self._stop))
        except Stopped:
            pass
        except BaseException as error:
            self._put(error)
        self._put(None)

    def _put(self, found: Finished[K] | BaseException | None) -> None:
        while True:
            try:
                self.done.put(found, timeout=0.1)
                return
            except queue.Full:
                if self._stop.is_set:
                    return


def run_many(
    client: Client, rows: Iterable[tuple[K, Request]], *, connections: int = CONNECTIONS
) -> Generator[Finished[K], None, None]:
    """Each of ``rows`` once, in the order in which they are finished.

    Rows are taken from the iterable as connections become free, by one thread at a time. Closing the
    generator ends all requests. What the iterable raises is raised here, when what runs has ended.
    """
    workers = _Workers(client, rows, connections)
    left, failure = connections, None
    try:
        while left:
            found = workers.done.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                failure = found
            else:
                yield found
    finally:
        workers.end()
    if failure is not None:
        raise failure
