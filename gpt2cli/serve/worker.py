"""The one thread that owns the models: it admits, computes, and sends back what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from gpt2cli.api.errors import ApiError, unavailable
from gpt2cli.api.models import Served
from gpt2cli.api.parts import Call, Computed, Ended, Event, Part, Scored, Text, Texts
from gpt2cli.core.engine import Engine
from gpt2cli.core.memory import available_memory
from gpt2cli.core.scheduler import Scheduler, Step
from gpt2cli.core.sequence import Group
from gpt2cli.serve.fair import FairQueue
from gpt2cli.serve.log import Log
from gpt2cli.serve.prefixes import Held, Prefixes
from gpt2cli.serve.tickets import Ticket

BESIDE = {"int8": 128, "int4": 128}
BESIDE_OTHERWISE = 64
"""Tokens of prompts in a pass beside texts that run: they cost such a text about as much as its own step."""
KEPT = 16
"""Prompts whose keys and values are kept at least, where there is memory for them."""
SHARE_OF_MEMORY = 0.5
"""Of what is free once the models are loaded, for keys and values; each model has an equal part of it."""


@dataclass(eq=False)
class Running:
    """A part whose group the scheduler has."""

    ticket: Ticket
    texts: Texts
    group: Group
    slot: int
    tokens: int
    """What its keys and values may come to."""
    scored: bool = False
    """Whether the scores of its prompt were sent."""

    @property
    def held(self) -> Held:
        """What its prompt's slot holds now."""
        reader = self.group.reader
        return Held(self.ticket.owner, self.slot, reader.ids[: reader.present])


class Lane:
    """One loaded model: its scheduler, what waits, what runs, and what is kept."""

    def __init__(self, engine: Engine, rows: int, memory: int | None) -> None:
        """``memory`` is what its keys and values may take, in bytes; None for any."""
        self.engine = engine
        self.scheduler = Scheduler(
            engine.backend, rows=rows, beside=BESIDE.get(engine.info.precision, BESIDE_OTHERWISE)
        )
        kept = max(rows, KEPT)
        # What does not keep keys and values would read a prompt's beginning again.
        self.prefixes = Prefixes(engine.backend, kept if engine.info.cache == "keys-values" else 0)
        self.queue: FairQueue[tuple[Ticket, Part]] = FairQueue()
        self.running: dict[Group, Running] = {}
        context = engine.config.n_positions
        most = (kept + 1) * context
        if memory is not None:
            most = min(most, memory // max(1, engine.backend.bytes_per_token))
        self.budget = max(most, 2 * context)
        """Tokens whose keys and values there is memory for."""

    @property
    def rows(self) -> int:
        """How many texts run, or wait for the others of their prompt."""
        return sum(running.texts.rows for running in self.running.values())

    @property
    def tokens(self) -> int:
        """What the keys and values of all that runs may come to."""
        return sum(running.tokens for running in self.running.values())


class Worker(threading.Thread):
    """Requests come by `submit` and leave by the queues of their tickets, in the event loop's thread.

    ``failed`` is what ended the thread, ``waiting_of`` how many requests of each key have not begun.
    """

    def __init__(
        self, models: Sequence[Served], loop: asyncio.AbstractEventLoop, rows: int, log: Log
    ) -> None:
        super().__init__(name="gpt2cli engine", daemon=True)
        self._models, self._loop, self._rows, self._log = models, loop, rows, log
        self._inbox: queue.SimpleQueue[Ticket | Callable[[], None] | None] = queue.SimpleQueue()
        self._lanes: dict[str, Lane] = {}
        self._outbox: list[tuple[Ticket, Event]] = []
        self.ready = asyncio.Event()
        self.failed: BaseException | None = None
        self.waiting_of: Counter[Hashable] = Counter()
        self.running = 0
        self.cache_usage = 0.0

    # What the event loop's thread calls

    @property
    def waiting(self) -> int:
        """How many requests have not begun."""
        return self.waiting_of.total()

    def submit(self, ticket: Ticket) -> None:
        """Hand a request over."""
        self.waiting_of[ticket.owner] += 1
        self._inbox.put(ticket)
        if self.failed is not None:
            # Nobody may have seen it there.
            ticket.events.put_nowait(ApiError.of(self.failed))

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more: before the next step its slots are free."""
        ticket.cancelled = True
        self._inbox.put(lambda: self._drop(ticket))

    def cancel_all(self) -> None:
        """End everything that runs or waits, and say so."""
        self._inbox.put(lambda: self._fail_all(unavailable("the server is stopping")))

    def stop(self) -> None:
        """End the thread after the step it is at."""
        self._inbox.put(None)

    # The thread

    def run(self) -> None:
        """Load the models, then one pass after the other until `stop`."""
        try:
            self._load()
            self._loop.call_soon_threadsafe(self.ready.set)
            while self._read_inbox():
                for lane in self._lanes.values():
                    self._admit(lane)
                    if lane.running:
                        self._pass(lane)
                self._measure()
                self._send()
        except BaseException as error:
            self.failed = error
            self._tell_all(self._taken() | self._left_in_inbox(), ApiError.of(error))
            self._tell(self.ready.set)
        finally:
            for model in self._models:
                if model.engine is not None:
                    model.engine.backend.close()

    def _load(self) -> None:
        for model in self._models:
            model.engine = Engine.from_checkpoint(model.checkpoint, model.load)
        free = available_memory()
        share = None if free is None else int(free * SHARE_OF_MEMORY) // max(1, len(self._models))
        for model in self._models:
            lane = self._lanes[model.name] = Lane(model.ready, self._rows, share)
            model.budget = lane.budget

    def _read_inbox(self) -> bool:
        """Do what was asked for; wait for it where there is nothing else to do. False at the end."""
        idle = not any(lane.running or len(lane.queue) for lane in self._lanes.values())
        while True:
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, Ticket):
                self._take_in(message)
            else:
                message()
            idle = False

    def _take_in(self, ticket: Ticket) -> None:
        if not ticket.cancelled:
            waiting = self._lanes[ticket.model.name].queue
            for part in ticket.parts:
                waiting.push(ticket.owner, ticket.connection, (ticket, part))

    def _admit(self, lane: Lane) -> None:
        """Begin what is next, as long as there are rows and memory for it."""
        while (entry := lane.queue.first()) is not None:
            ticket, part = entry
            if isinstance(part, Texts) and not self._make_room(lane, part):
                break
            lane.queue.pop()
            self._begin(lane, ticket, part)
            if isinstance(part, Call):
                # It took a while: those that run have a step now.
                break

    def _measure(self) -> None:
        """What `/metrics` says of this moment."""
        self.running = sum(lane.rows for lane in self._lanes.values())
        self.cache_usage = max((lane.tokens / lane.budget for lane in self._lanes.values()), default=0.0)

    def _make_room(self, lane: Lane, part: Texts) -> bool:
        """Whether a part can begin now; what is only kept gives way to it."""
        rows_free = not lane.running or lane.rows + part.rows <= self._rows
        needed = lane.tokens + part.tokens(lane.engine.config.n_positions)
        if not rows_free or (lane.running and needed > lane.budget):
            return False
        while needed + lane.prefixes.tokens > lane.budget and lane.prefixes.give_up_one():
            pass
        return True

    def _begin(self, lane: Lane, ticket: Ticket, part: Part) -> None:
        if not ticket.begun:
            ticket.begun = True
            self._tell(partial(self._one_less_waiting, ticket.owner))
        try:
            if isinstance(part, Call):
                self._post(ticket, Computed(part.first, part.run(lane.engine)))
                self._post(ticket, Ended(part.first, None))
                return
            group = part.group(lane.engine)
            running = [other.held for other in lane.running.values()] if part.prompt_logprobs is None else []
            if part.prompt_logprobs is None:
                slot, present = lane.prefixes.begin(ticket.owner, part.ids, running)
            else:
                slot, present = lane.engine.backend.new_slot(), 0
            group.lend(slot, present)
            tokens = part.tokens(lane.engine.config.n_positions)
            lane.running[group] = Running(ticket, part, group, slot, tokens)
            lane.scheduler.admit([group])
        except Exception as error:
            self._log.failure("the engine", error)
            self._drop(ticket)
            self._post(ticket, ApiError.of(error))

    def _pass(self, lane: Lane) -> None:
        """One pass of the model, and what is drawn after it."""
        try:
            for step in lane.scheduler.run():
                if step is not None:
                    self._hand_on(lane, step)
                if not lane.scheduler.drawing:
                    break
        except Exception as error:
            self._log.failure("the engine", error)
            # What a model computes that is damaged is no number for any of its texts.
            for ticket in {running.ticket for running in lane.running.values()}:
                self._drop(ticket)
                self._post(ticket, ApiError.of(error))

    def _hand_on(self, lane: Lane, step: Step) -> None:
        running = lane.running[step.sequence.group]
        ticket, texts = running.ticket, running.texts
        if texts.prompt_logprobs is not None and not running.scored:
            running.scored = True
            self._post(ticket, Scored(texts.prompt, running.group.scores))
        for chunk in step.chunks:
            self._post(ticket, Text(texts.first + chunk.sequence, chunk))
        if all(sequence.finish_reason is not None for sequence in running.group.sequences):
            self._post(ticket, Ended(texts.first, running.group.stats))
            self._retire(lane, running)

    def _retire(self, lane: Lane, running: Running) -> None:
        """A part has ended, or is not wanted any more."""
        held = running.held
        del lane.running[running.group]
        lane.scheduler.drop([running.group])
        lane.prefixes.keep(held)

    def _drop(self, ticket: Ticket) -> None:
        """Forget a request, and free what it has."""
        for lane in self._lanes.values():
            lane.queue.remove(lambda entry: entry[0] is ticket)
            for running in [r for r in lane.running.values() if r.ticket is ticket]:
                self._retire(lane, running)
        if not ticket.begun:
            ticket.begun = True
            self._tell(partial(self._one_less_waiting, ticket.owner))

    def _fail_all(self, error: ApiError) -> None:
        """Tell every request that it came to nothing, and then free what they have."""
        tickets = self._taken()
        self._tell_all(tickets, error)
        for ticket in tickets:
            self._drop(ticket)

    def _tell_all(self, tickets: Iterable[Ticket], error: ApiError) -> None:
        for ticket in tickets:
            self._post(ticket, error)
        self._send()

    def _taken(self) -> set[Ticket]:
        """The requests that run, or wait for their turn."""
        lanes = self._lanes.values()
        running = {running.ticket for lane in lanes for running in lane.running.values()}
        return running | {ticket for lane in lanes for ticket, _ in lane.queue}

    def _left_in_inbox(self) -> set[Ticket]:
        """The requests that were not looked at yet."""
        found = set()
        with contextlib.suppress(queue.Empty):
            while True:
                if isinstance(message := self._inbox.get_nowait(), Ticket):
                    found.add(message)
        return found

    # Back to the event loop

    def _post(self, ticket: Ticket, event: Event) -> None:
        self._outbox.append((ticket, event))

    def _send(self) -> None:
        """Hand all events of a pass over at once: waking the other thread costs more than an event."""
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._tell(lambda: _deliver(outbox))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            self._outbox.clear()

    def _one_less_waiting(self, owner: Hashable) -> None:
        self.waiting_of[owner] -= 1


def _deliver(outbox: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in outbox:
        ticket.events.put_nowait(event)
