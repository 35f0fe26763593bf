"""From the first line to the last: load, listen, and end when a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import uvicorn

from gpt2cli.api.models import Served
from gpt2cli.serve import limits
from gpt2cli.serve.app import Api
from gpt2cli.serve.guard import Doors, Guard
from gpt2cli.serve.log import Log
from gpt2cli.serve.metrics import Metrics
from gpt2cli.serve.protocol import Protocol
from gpt2cli.serve.service import Service
from gpt2cli.serve.worker import Worker

SWITCH_S = 0.0005
"""The engine's thread waits no longer than this for the one that answers, and the other way round."""
LAST_WORDS_S = 3.0
"""What was cut off at the end is told so within this."""


@dataclass(frozen=True)
class Plan:
    """What a server is started with. ``ready`` is called when the models are loaded."""

    models: Sequence[Served]
    listener: socket.socket
    doors: Doors
    rows: int
    most_waiting: int
    log: Log
    ready: Callable[[], None]


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(plan: Plan) -> None:
    """Serve until a signal ends it. Raises `Gpt2cliError` where the models cannot be loaded."""
    # uvicorn's own words would come between the lines of our log.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        asyncio.run(_serve(plan))
    finally:
        sys.setswitchinterval(before)
        plan.log.close()


async def _serve(plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    worker = Worker(plan.models, loop, plan.rows, plan.log)
    metrics = Metrics()
    service = Service(plan.models, worker, metrics, plan.most_waiting, len(plan.doors.keys))
    api = Api(service)
    guard = Guard(api, plan.doors, plan.log, metrics, api.paths)
    config = uvicorn.Config(
        guard,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(limits.IDLE_S),
        timeout_graceful_shutdown=int(LAST_WORDS_S),
        h11_max_incomplete_event_size=limits.MAX_HEAD,
    )
    server = _Uvicorn(config)
    ending = _Ending()
    worker.start()
    serving = asyncio.create_task(server.serve([plan.listener]))
    try:
        with _signals(loop, ending.signal):
            await _until_the_end(worker, ending, serving, plan.ready)
            service.stopping = True
            await _drain(guard, worker, ending, plan.log)
            server.should_exit = True
            await serving
    finally:
        worker.stop()
        service.close()
        await asyncio.to_thread(worker.join, LAST_WORDS_S)
    if worker.failed is not None:
        raise worker.failed


class _Ending:
    """Signals: the first ends new requests, the second those that run."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def signal(self) -> None:
        """A signal has come."""
        (self.second if self.first.is_set() else self.first).set()


async def _until_the_end(
    worker: Worker, ending: _Ending, serving: asyncio.Task[None], ready: Callable[[], None]
) -> None:
    """Wait for the models, and then for a signal, or for the worker's failure."""
    ended = asyncio.create_task(ending.first.wait())
    loaded = asyncio.create_task(worker.ready.wait())
    try:
        await asyncio.wait({ended, loaded, serving}, return_when=asyncio.FIRST_COMPLETED)
        if worker.failed is None and worker.ready.is_set():
            ready()
        while worker.failed is None and not ended.done() and not serving.done():
            await asyncio.wait({ended, serving}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        loaded.cancel()


async def _drain(guard: Guard, worker: Worker, ending: _Ending, log: Log) -> None:
    """Let what runs end, for a while; then tell the others that they do not."""
    if guard.active and worker.failed is None:
        log.say(
            f"stopping: {guard.active} requests have {limits.DRAIN_S:.0f} s to end; "
            "a second signal ends them now"
        )
        await _quiet(guard, limits.DRAIN_S, ending.second)
        worker.cancel_all()
    await _quiet(guard, LAST_WORDS_S)


async def _quiet(guard: Guard, patience_s: float, sooner: asyncio.Event | None = None) -> None:
    """Wait until nothing is answered any more, or the patience ends."""
    end = asyncio.get_running_loop().time() + patience_s
    while guard.active and not (sooner and sooner.is_set()):
        if asyncio.get_running_loop().time() >= end:
            return
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Generator[None, None, None]:
    """SIGINT and SIGTERM call ``call`` in the loop; one that is to be ignored stays so."""
    taken = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN
    ]
    previous = {number: signal.getsignal(number) for number in taken}
    for number in taken:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
