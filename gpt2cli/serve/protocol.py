"""HTTP/1.1 by uvicorn and h11, with limits on what comes before a request is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2cli.api.answers import dumps
from gpt2cli.api.errors import ApiError
from gpt2cli.serve import limits


class Protocol(H11Protocol):
    """One connection. Who does not send a whole head in time, or too much of one, is cut off."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # A part of each request's scope: an answer that nobody takes can be cut off.
        self.app_state = {"protocol": self}
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > limits.MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch()
        self._look_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # The answer did not need the rest of the request: nobody waits for it.
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all errors."""
        too_long = len(self.conn.trailing_data[0]) >= limits.MAX_HEAD
        error = (
            ApiError(431, "the head is too long") if too_long else ApiError(400, "this is no HTTP request")
        )
        body = dumps(error.document())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=error.status, headers=headers, reason=b"")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def abort(self) -> None:
        """Cut the connection off."""
        self.transport.abort()

    def _watch(self) -> None:
        """Give a head that is not whole so much time, from its beginning on."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._calm()
        elif self._patience is None:
            self._patience = self.loop.call_later(limits.HEAD_S, self.transport.close)

    def _look_on(self, before: int | None = None) -> None:
        """Cut off who takes nothing of what is left, now and then: a transport that closes waits for ever."""
        left = self.transport.get_write_buffer_size() if self.transport.is_closing() else None
        if left is not None and left == before:
            self.transport.abort()
        else:
            self._stalled = self.loop.call_later(limits.STALLED_S, self._look_on, left)

    def _calm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
