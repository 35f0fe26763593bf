"""Rows on a server that speaks OpenAI's API: each is sent as it stands, several at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from gpt2cli.api.errors import ApiError
from gpt2cli.batch.engine import Beat, Finished, Row
from gpt2cli.remote.answers import message_of
from gpt2cli.remote.client import Busy, Client, Policy
from gpt2cli.remote.wire import Silent, Stop

PATIENCE = Policy(retries=14, most_wait_s=15.0)
"""A server that is started again is waited for: some two and a half minutes."""
BEAT_S = 0.2
SILENCE_S = 5.0
"""Requests that wait all say so: one of them in this time is enough."""


class ServerEngine:
    """Sends rows to one model of a server that is `connect`ed, ``slots`` at a time.

    A row that the server refuses, or that it fails at again and again, is that row's error. A server that
    is not there any more, or that refuses the key, ends the run.
    """

    def __init__(self, client: Client, slots: int, say: Callable[[str], None]) -> None:
        self._client = Client(replace(client.site, patient=True), policy=PATIENCE, say=self._told)
        self._client.server, self._client.model = client.server, client.model
        self._slots, self._say, self._said = slots, say, 0.0
        self._stop = Stop()

    def run(self, rows: Iterable[Row]) -> Iterator[Beat]:
        """Run them all, as `Engine` says. Raises `Gpt2cliError` where the server is gone."""
        waiting, running = iter(rows), set[Future[Finished]]()
        with ThreadPoolExecutor(self._slots, "row") as pool:
            try:
                while True:
                    while len(running) < self._slots and (row := next(waiting, None)) is not None:
                        running.add(pool.submit(self._answer, row))
                    if not running:
                        return
                    done, running = wait(running, BEAT_S, FIRST_COMPLETED)
                    failures = [error for each in done if (error := each.exception()) is not None]
                    finished = [each.result() for each in done if each.exception() is None]
                    yield Beat(finished, sum(map(_tokens, finished)))
                    if failures:
                        raise failures[0]
            finally:
                self._stop.set()

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, row: Row) -> Finished:
        """One row, to its end. Raises `Gpt2cliError`, `Stopped`."""
        try:
            if row.body.get("stream"):
                raise ApiError(400, "stream: a batch has no streams", param="stream")
            body = json.dumps({"model": self._client.model.name, **row.body}).encode("ascii")
            status, document = self._client.ask(row.url.removeprefix("/v1"), body, self._stop)
            if status != 200:
                raise ApiError(status, _why(document), code="refused")
            if not _is_answer(document):
                raise ApiError(502, "what the server sends is no answer", code="no_answer")
        except Busy as error:
            return Finished.refused(row.id, row.key, ApiError(error.status, str(error), code="failed"))
        except Silent as error:
            return Finished.refused(row.id, row.key, ApiError(504, str(error), code="no_answer"))
        except ApiError as error:
            return Finished.refused(row.id, row.key, error)
        assert isinstance(document, dict)
        if len(document["choices"]) == 1:
            # Few servers name the seed; with several texts it is theirs to say.
            document["choices"][0].setdefault("seed", row.body.get("seed"))
        return Finished(row.id, row.key, 200, document)

    def _told(self, text: str) -> None:
        if time.monotonic() - self._said > SILENCE_S:
            self._said = time.monotonic()
            self._say(text)


def _is_answer(document: object) -> bool:
    """Whether there is a text in every choice."""
    choices = document.get("choices") if isinstance(document, dict) else None
    return isinstance(choices, list) and bool(choices) and all(map(_has_text, choices))


def _has_text(choice: object) -> bool:
    if not isinstance(choice, dict):
        return False
    message = choice.get("message")
    return isinstance(message.get("content") if isinstance(message, dict) else choice.get("text"), str)


def _why(document: object) -> str:
    """What a refusal says."""
    return message_of(document) or "the server refuses the row"


def _tokens(finished: Finished) -> int:
    usage: Any = finished.body.get("usage")
    drawn = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return drawn if isinstance(drawn, int) else 0
