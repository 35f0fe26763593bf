"""Who may ask at all: the Host, the Origin and the key of every request; and a line in the log for each."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2cli.api.answers import dumps
from gpt2cli.api.errors import ApiError
from gpt2cli.serve import limits
from gpt2cli.serve.log import Log, Record
from gpt2cli.serve.metrics import Metrics

OPEN = frozenset({"/health"})
"""Paths that need no key."""
PIECE = 2**16
"""Bytes of an answer that are handed over at once."""
GONE = 499
"""The status in the log of a client that left before its answer."""


class Gone(Exception):
    """The client is not there any more."""


class Keys:
    """The API keys. They are compared by their hashes, each in constant time, and always all of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __len__(self) -> int:
        return len(self._hashes)

    def owner(self, key: bytes) -> int | None:
        """The number of a key; None for one that is not ours."""
        found, owner = hashlib.sha256(key).digest(), None
        for number, known in enumerate(self._hashes):
            if hmac.compare_digest(found, known):
                owner = number
        return owner


@dataclass(frozen=True)
class Doors:
    """What is let in. ``hosts`` are exact values of the Host header, in small letters; ``any_host`` is of a
    socket file, which no browser reaches."""

    hosts: frozenset[str]
    keys: Keys
    any_host: bool = False


class Guard:
    """The outermost application."""

    def __init__(
        self, app: ASGIApp, doors: Doors, log: Log, metrics: Metrics, paths: Collection[str]
    ) -> None:
        self._app, self._doors, self._log, self._metrics = app, doors, log, metrics
        self._paths = frozenset(paths)
        self.active = 0
        """How many requests are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(scope["method"], self._shown(scope["path"]))
        scope["state"]["record"] = record
        answer = _Answer(send, record)
        self.active += 1
        try:
            scope["state"]["owner"] = self._let_in(scope)
            await self._app(scope, receive, answer.send)
        except ApiError as error:
            await self._refuse(scope, answer, error)
        except Gone:
            self._cut_off(scope)
        except Exception as error:
            self._log.failure(record.path, error)
            await self._refuse(scope, answer, ApiError.of(error))
        finally:
            self.active -= 1
            self._metrics.answers[record.path, record.status] += 1
            self._log.answer(record)

    def _shown(self, path: str) -> str:
        """A path as the log has it."""
        if path in self._paths:
            return path
        return "/v1/models/…" if path.startswith("/v1/models/") else "?"

    def _let_in(self, scope: Scope) -> int | None:
        """The number of the request's key. Raises `ApiError`."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        head = sum(len(name) + len(value) + 4 for name, value in headers)
        if head + len(scope["raw_path"]) + len(scope["query_string"]) > limits.MAX_HEAD:
            raise ApiError(431, "the head of the request is too long", close=True)
        hosts = _values(headers, b"host")
        if not self._doors.any_host and not (len(hosts) == 1 and self._is_ours(hosts[0], scope)):
            raise ApiError(
                403, "this server does not answer under that host name", code="host_not_allowed", close=True
            )
        for origin in _values(headers, b"origin"):
            # A page that we did not serve; we serve none.
            if not self._is_ours(origin.removeprefix("http://"), scope) or not origin.startswith("http://"):
                raise ApiError(
                    403, "requests of web pages are refused", code="origin_not_allowed", close=True
                )
        if not self._doors.keys or scope["path"] in OPEN:
            return None
        given = [value for value in _values(headers, b"authorization") if value.startswith("bearer ")]
        raw = [value for name, value in headers if name == b"authorization"]
        owner = (
            self._doors.keys.owner(raw[0][len("bearer ") :].strip()) if len(raw) == len(given) == 1 else None
        )
        if owner is None:
            raise ApiError(
                401,
                "an API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
                close=True,
            )
        return owner

    def _is_ours(self, host: str, scope: Scope) -> bool:
        if host in self._doors.hosts:
            return True
        # The address itself that the client has reached: it is no name that could be bound to another one.
        server = scope.get("server")
        if not server or server[1] is None:
            return False
        address = f"[{server[0]}]" if ":" in server[0] else server[0]
        return host == f"{address}:{server[1]}"

    def _cut_off(self, scope: Scope) -> None:
        record: Record = scope["state"]["record"]
        record.status = record.status or GONE
        scope["state"]["protocol"].abort()

    async def _refuse(self, scope: Scope, answer: _Answer, error: ApiError) -> None:
        """Say an error where nothing was said yet; whoever cannot be told it is cut off."""
        if answer.started:
            return
        try:
            await self._say(answer, error)
        except Gone:
            self._cut_off(scope)
        except Exception as failure:
            self._log.failure(scope["state"]["record"].path, failure)
            self._cut_off(scope)

    async def _say(self, answer: _Answer, error: ApiError) -> None:
        body = dumps(error.document())
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **error.headers,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await answer.send({"type": "http.response.start", "status": error.status, "headers": raw})
        await answer.send({"type": "http.response.body", "body": body})


class _Answer:
    """The sending end of a request: it notes the status, and does not wait for ever for a reader."""

    def __init__(self, send: Send, record: Record) -> None:
        self._send, self._record = send, record
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self._record.status = True, message["status"]
        body: bytes = message.get("body", b"")
        for at in range(0, len(body) if len(body) > PIECE else 0, PIECE):
            await self._hand_over({**message, "body": body[at : at + PIECE], "more_body": True})
        # uvicorn waits for the reader before it writes, not after: the end of a long answer comes alone.
        await self._hand_over({**message, "body": b""} if len(body) > PIECE else message)

    async def _hand_over(self, message: Message) -> None:
        try:
            async with asyncio.timeout(limits.STALLED_S):
                await self._send(message)
        except TimeoutError:
            raise Gone from None


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """All values of a header, in small letters."""
    return [value.decode("latin-1").strip().lower() for key, value in headers if key == name]
