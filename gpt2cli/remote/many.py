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


def run_many(
    client: Client, rows: Iterable[tuple[K, Request]], *, connections: int = CONNECTIONS
) -> Generator[Finished[K], None, None]:
    """Each of ``rows`` once, in the order in which they are finished.

    Rows are taken from the iterable as connections become free, by one thread at a time. Closing the
    generator ends all requests. What the iterable raises is raised here, when what runs has ended.
    """
    stop, source, lock = Stop(), iter(rows), threading.Lock()
    done: queue.Queue[Finished[K] | BaseException | None] = queue.Queue(connections)

    def put(found: Finished[K] | BaseException | None) -> None:
        while True:
            try:
                done.put(found, timeout=0.1)
                return
            except queue.Full:
                if stop.is_set:
                    return

    def work() -> None:
        try:
            while not stop.is_set:
                with lock:
                    row = next(source, None)
                if row is None:
                    break
                put(collect(client, *row, stop))
        except Stopped:
            pass
        except BaseException as error:
            put(error)
        put(None)

    threads = [threading.Thread(target=work, name=f"remote-{n}", daemon=True) for n in range(connections)]
    for thread in threads:
        thread.start()
    left, failure = connections, None
    try:
        while left:
            found = done.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                failure = found
            else:
                yield found
    finally:
        stop.set()
        for thread in threads:
            # One may wait for the next row, which nobody can end.
            thread.join(LEAVE_S)
    if failure is not None:
        raise failure
