"""An answer as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpt2cli.api.answers import Answer, dumps
from gpt2cli.api.errors import ApiError
from gpt2cli.serve.guard import Gone

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Stream(Response):
    """Chunks as they come, the usage where it is asked for, and ``[DONE]``.

    A failure before the first chunk is an answer of its own, with its status; a later one is a chunk.
    """

    def __init__(self, chunks: AsyncIterator[Mapping[str, Any]], answer: Answer) -> None:
        self._chunks, self._answer = chunks, answer
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks, started = self._chunks, False
        try:
            async for chunk in chunks:
                data = b"data: " + dumps(chunk) + b"\n\n"
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except ApiError as error:
            if not started:
                raise
            await self._end(send, b"data: " + dumps(error.document()) + b"\n\n")
            return
        except Gone:
            raise
        except Exception as error:
            if started:
                await self._end(send, b"data: " + dumps(ApiError.of(error).document()) + b"\n\n")
            # For the log.
            raise
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        last = b""
        if self._answer.request.include_usage:
            last = b"data: " + dumps(self._answer.last()) + b"\n\n"
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._end(send, last)

    async def _end(self, send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last + b"data: [DONE]\n\n", "more_body": False})
