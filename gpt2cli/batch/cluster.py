"""Rows on a Ray cluster: plain actors with an engine each, which are handed a few rows at a time.

Plain actors and not Ray Data, for rows are to be written as they end, and a worker's scheduler to be full at
any time: Ray Data hands back whole blocks when the last of their rows has ended, and runs a whole block again
where a worker dies. Here a worker that dies costs only what it had begun.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from gpt2cli import __version__
from gpt2cli.batch.engine import Beat, Finished, Row
from gpt2cli.errors import Gpt2cliError, Unavailable, UsageError
from gpt2cli.options import LoadOptions

BEAT_S = 0.25
"""A worker hands over what has finished every so many seconds."""
AHEAD = 2
"""Rows that a worker holds, for each of its slots."""
MOST_DEATHS = 3
"""Workers that may die one after the other, for each there is, before a single row has finished."""
PATIENCE_S = 30.0
"""After so long without a worker something is said."""


_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "error"}
"""It tells nobody of its use, and a cluster that does not answer is not told line by line."""


def check_installed() -> None:
    """Raise `UsageError` where there is no Ray."""
    if find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed", hint="pip install 'gpt2cli[ray]'")


@dataclass(frozen=True, slots=True)
class Plan:
    """What each worker is to do. ``model`` is a name or a directory, the same on every machine."""

    model: str
    revision: str | None
    model_hash: str
    load: LoadOptions
    slots: int
    workers: int | None = None
    version: str = __version__


_NOTHING = Beat((), 0)


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker says. ``error`` is why it cannot go on."""

    beat: Beat = _NOTHING
    error: str | None = None


class RowWorker:
    """What runs in a process of the cluster: one engine, which keeps its rows from one step to the next."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine: Any = None
        self._waiting: deque[Row] = deque()

    def begin(self) -> Told:
        """Load the model."""
        try:
            self._load()
        except (Gpt2cliError, OSError) as error:
            return Told(error=f"{os.uname().nodename}: {error}")
        return Told()

    def step(self, rows: list[Row]) -> Told:
        """Take rows in, and compute for a moment."""
        self._waiting.extend(rows)
        finished: list[Finished] = []
        tokens, end = 0, time.monotonic() + BEAT_S
        try:
            while time.monotonic() < end:
                while self._engine.hungry and self._waiting:
                    self._engine.offer(self._waiting.popleft())
                idle = self._engine.idle and not self._waiting
                beat = self._engine.step()
                finished += beat.finished
                tokens += beat.tokens
                if idle:
                    break
        except Gpt2cliError as error:
            return Told(error=str(error))
        return Told(Beat(finished, tokens))

    def _load(self) -> None:
        from gpt2cli.api.models import Served
        from gpt2cli.batch.local import LocalEngine
        from gpt2cli.checkpoint import open_checkpoint
        from gpt2cli.core.engine import Engine
        from gpt2cli.hub.resolve import resolve
        from gpt2cli.jobs.manifest import model_hash

        plan = self._plan
        if plan.version != __version__:
            raise UsageError(f"there is gpt2cli {__version__} here, and {plan.version} where this began")
        found = resolve(plan.model, revision=plan.revision or None)
        if model_hash(found.directory, adapter=found.adapter) != plan.model_hash:
            raise UsageError(f"{plan.model} is another model here than where this began")
        checkpoint = open_checkpoint(
            found.directory, allow_pickle=plan.load.allow_pickle, adapter=found.adapter
        )
        served = Served(found.label, checkpoint, plan.load)
        served.engine = Engine.from_checkpoint(checkpoint, plan.load)
        self._engine = LocalEngine(served, plan.slots)


@dataclass(eq=False, slots=True)
class _Actor:
    """A worker as its driver sees it."""

    handle: Any
    call: Any
    ready: bool = False
    rows: dict[str, Row] = field(default_factory=dict)
    """What it has, by their keys."""


@dataclass(frozen=True, slots=True)
class _Needs:
    """How many workers, and what each is given of the cluster."""

    workers: int
    cpus: int
    gpus: int


class ClusterEngine:
    """Runs rows on a cluster; the driver keeps every row until it has finished."""

    def __init__(self, address: str, plan: Plan, warn: Callable[[str], None]) -> None:
        """Connect. Raises `Unavailable` where no cluster answers, and `Gpt2cliError`."""
        self._warn = warn
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._ray: Any = importlib.import_module("ray")
        _connect(self._ray, address)
        try:
            needs = self._needs(plan)
            load = replace(plan.load, threads=plan.load.threads or needs.cpus)
            self._plan = replace(plan, load=load)
            self._class: Any = self._ray.remote(RowWorker).options(
                num_cpus=needs.cpus, num_gpus=needs.gpus, max_restarts=0
            )
            self._deaths, self._most_deaths = 0, MOST_DEATHS * needs.workers
            self._actors = [self._start() for _ in range(needs.workers)]
        except BaseException:
            self._ray.shutdown()
            raise

    def run(self, rows: Iterable[Row]) -> Iterator[Beat]:
        """Run them all, as `Engine` says. Raises `Gpt2cliError` where workers cannot go on."""
        fresh, back = iter(rows), deque[Row]()
        heard, said = time.monotonic(), False
        while True:
            self._hand_out(fresh, back)
            calls = {actor.call: actor for actor in self._actors if actor.call is not None}
            busy = [actor for actor in self._actors if actor.rows]
            if not busy and not back and any(actor.ready for actor in self._actors):
                return
            ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=BEAT_S / 2)
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE_S and not said:
                said = True
                self._warn("waiting for the cluster to have room for a worker; ray status says what it has")
            for call in ready:
                beat = self._hear(calls[call], call, back)
                if beat is not None:
                    yield beat
            if not ready:
                yield _NOTHING

    def close(self) -> None:
        """End the workers, and leave the cluster; one that was begun for this ends."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)
        self._ray.shutdown()

    def _hand_out(self, fresh: Iterator[Row], back: deque[Row]) -> None:
        """Have every worker that waits for it take its next step, with as many rows as it has room for."""
        free = [actor for actor in self._actors if actor.ready and actor.call is None]
        new: dict[_Actor, list[Row]] = {actor: [] for actor in free}
        hungry = deque(actor for actor in free if len(actor.rows) < AHEAD * self._plan.slots)
        # In turns, so that a few rows are everybody's.
        while hungry and (row := back.popleft() if back else next(fresh, None)) is not None:
            actor = hungry.popleft()
            actor.rows[row.key] = row
            new[actor].append(row)
            if len(actor.rows) < AHEAD * self._plan.slots:
                hungry.append(actor)
        for actor, rows in new.items():
            if actor.rows:
                actor.call = actor.handle.step.remote(rows)

    def _hear(self, actor: _Actor, call: Any, back: deque[Row]) -> Beat | None:
        """What a worker says; of one that has died the rows go ``back``, and another takes its place."""
        try:
            told: Told = self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            self._deaths += 1
            if self._deaths > self._most_deaths:
                raise Gpt2cliError(f"workers on Ray keep dying: {_first_line(error)}") from None
            self._warn(f"a worker has died; {len(actor.rows)} rows begin anew on another one")
            back.extend(actor.rows.values())
            self._actors[self._actors.index(actor)] = self._start()
            return None
        except self._ray.exceptions.RayError as error:
            raise Gpt2cliError(f"Ray: {_first_line(error)}") from None
        if told.error is not None:
            raise Gpt2cliError(f"a worker on Ray failed: {told.error}")
        actor.ready, actor.call = True, None
        for finished in told.beat.finished:
            self._deaths = 0
            del actor.rows[finished.key]
        return told.beat

    def _start(self) -> _Actor:
        handle = self._class.remote(self._plan)
        return _Actor(handle, handle.begin.remote())

    def _needs(self, plan: Plan) -> _Needs:
        """One worker for each GPU, else for each machine with a processor, or as many as asked for."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        if not cpus:
            raise Unavailable("the Ray cluster has no processors", hint="ray status says what it has")
        gpus = 0 if plan.load.device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
        if gpus:
            return _Needs(plan.workers or gpus, plan.load.threads or 1, 1)
        if plan.workers is None:
            return _Needs(len(cpus), plan.load.threads or min(cpus), 0)
        return _Needs(plan.workers, plan.load.threads or max(1, sum(cpus) // plan.workers), 0)


def _connect(ray: Any, address: str) -> None:
    """Raises `Unavailable`, `Gpt2cliError`."""
    more = {"include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **more)
    except (ConnectionError, ValueError, TimeoutError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            hint="ray start --head begins one; --ray local one for this run alone",
        ) from None
    except RuntimeError as error:
        raise Gpt2cliError(f"Ray: {_first_line(error)}") from None
    finally:
        # Ray has one of its own for SIGTERM.
        with contextlib.suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
