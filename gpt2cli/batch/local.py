"""Rows on the engine of this process, many at once through its scheduler."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt2cli.api import bodies
from gpt2cli.api.answers import Answer
from gpt2cli.api.chat import ChatCompletion, read_chat
from gpt2cli.api.completions import Completion
from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served, choose
from gpt2cli.api.parts import Ended, Event, Scored, Text, Texts
from gpt2cli.api.reading import read_completion
from gpt2cli.api.schema import check_body
from gpt2cli.batch.engine import CHAT, Beat, Finished, Row
from gpt2cli.core.memory import available_memory
from gpt2cli.core.scheduler import Scheduler, Step
from gpt2cli.core.sequence import Group
from gpt2cli.errors import Gpt2cliError, UsageError

SHARE_OF_MEMORY = 0.5
"""Of what is free once the model is loaded, for keys and values."""


@dataclass(eq=False, slots=True)
class _Answering:
    """A row whose texts wait or run."""

    row: Row
    answer: Answer


@dataclass(eq=False, slots=True)
class _Running:
    """A part that the scheduler has."""

    answering: _Answering
    texts: Texts
    tokens: int
    scored: bool = False


class LocalEngine:
    """Runs rows on one loaded model, ``slots`` texts at once: `offer` and `step`, until all is done."""

    def __init__(self, model: Served, slots: int) -> None:
        self._model, self._slots = model, slots
        engine = model.ready
        self._context = engine.config.n_positions
        self._scheduler = Scheduler(engine.backend, rows=slots)
        most, free = (slots + 1) * self._context, available_memory()
        if free is not None:
            most = min(most, int(free * SHARE_OF_MEMORY) // max(1, engine.backend.bytes_per_token))
        model.budget = max(most, 2 * self._context)
        self._parts: deque[tuple[_Answering, Texts]] = deque()
        self._running: dict[Group, _Running] = {}
        self._finished: list[Finished] = []
        self._tokens = 0

    def run(self, rows: Iterable[Row]) -> Iterator[Beat]:
        """Run them all, as `Engine` says. Raises `ModelFileError` for logits that are no numbers."""
        waiting = iter(rows)
        while True:
            while self.hungry and (row := next(waiting, None)) is not None:
                self.offer(row)
            if self.idle and not self._finished:
                return
            yield self.step()

    def close(self) -> None:
        """Let go of the model."""
        self._model.ready.backend.close()

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._parts and not self._running

    @property
    def hungry(self) -> bool:
        """Whether there is room for another row."""
        return not self._parts and self._rows < self._slots and len(self._finished) < self._slots

    def offer(self, row: Row) -> None:
        """Take a row in."""
        try:
            answer = self._read(row)
        except Exception as error:
            self._finished.append(Finished.refused(row.id, row.key, _told(error)))
            return
        answering = _Answering(row, answer)
        self._parts.extend((answering, part) for part in answer.request.parts)

    def step(self) -> Beat:
        """One pass of the model, and what has finished with it or before."""
        self._admit()
        if self._running:
            for step in self._scheduler.run():
                if step is not None:
                    self._take(step)
                if not self._scheduler.drawing:
                    break
        beat = Beat(self._finished, self._tokens)
        self._finished, self._tokens = [], 0
        return beat

    @property
    def _rows(self) -> int:
        return sum(running.texts.rows for running in self._running.values())

    def _read(self, row: Row) -> Answer:
        """What is to be done for a row. Raises `ApiError`, `Gpt2cliError`."""
        body, chat = row.body, row.url == CHAT
        check_body(bodies.CHAT if chat else bodies.COMPLETION, body)
        if body.get("stream"):
            raise ApiError(400, "stream: a batch has no streams", param="stream")
        model = choose([self._model], body.get("model"))
        request = read_chat(body, model) if chat else read_completion(body, model)
        return (ChatCompletion if chat else Completion)(request, row.key)

    def _admit(self) -> None:
        """Begin what is next, as long as there are rows and memory for it."""
        while self._parts:
            answering, texts = self._parts[0]
            tokens = texts.tokens(self._context)
            used = sum(running.tokens for running in self._running.values())
            full = self._rows + texts.rows > self._slots or used + tokens > self._model.budget
            if self._running and full:
                return
            self._parts.popleft()
            group = texts.group(self._model.ready)
            self._running[group] = _Running(answering, texts, tokens)
            self._scheduler.admit([group])

    def _take(self, step: Step) -> None:
        group = step.sequence.group
        running = self._running[group]
        texts = running.texts
        if texts.prompt_logprobs is not None and not running.scored:
            running.scored = True
            self._tell(running, Scored(texts.prompt, group.scores))
        for chunk in step.chunks:
            self._tokens += chunk.token is not None
            self._tell(running, Text(texts.first + chunk.sequence, chunk))
        if all(sequence.finish_reason is not None for sequence in group.sequences):
            del self._running[group]
            self._scheduler.drop([group])
            self._tell(running, Ended(texts.first, group.stats))

    def _tell(self, running: _Running, event: Event) -> None:
        row, answer = running.answering.row, running.answering.answer
        for _ in answer.take(event):
            pass
        if answer.done:
            self._finished.append(Finished(row.id, row.key, 200, answer.whole()))


def _told(error: Exception) -> ApiError:
    """What is said of a row that cannot be run; who reads it may know the paths of this machine."""
    if isinstance(error, Gpt2cliError) and not isinstance(error, UsageError):
        known = ApiError.of(error)
        return known if known.status == 400 else ApiError(500, str(error))
    return ApiError.of(error)
