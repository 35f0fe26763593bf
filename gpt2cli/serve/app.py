"""The endpoints."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from gpt2cli import __version__
from gpt2cli.api import bodies
from gpt2cli.api.answers import Answer, dumps, dumps_long
from gpt2cli.api.chat import ChatCompletion, read_chat
from gpt2cli.api.completions import Completion
from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served, choose
from gpt2cli.api.parts import Call, Computed, Text
from gpt2cli.api.reading import Request, check_text, read_completion, tokenizer_of
from gpt2cli.api.schema import Schema, check_body
from gpt2cli.errors import Gpt2cliError
from gpt2cli.options import shown
from gpt2cli.serve import limits, openapi
from gpt2cli.serve.embeddings import embed, embeddings_document, read_inputs
from gpt2cli.serve.guard import Gone
from gpt2cli.serve.log import Record
from gpt2cli.serve.service import Service
from gpt2cli.serve.streaming import Stream
from gpt2cli.serve.tickets import Ticket

AT_ONCE = 2**10
"""Bytes of a body that are read in the event loop: about a millisecond."""
TOKENS_AT_ONCE = 2**12
"""Tokens that are written before another thread may run."""
Read = Callable[[Mapping[str, Any], Served], Request]
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class JsonResponse(Response):
    """ASCII JSON, of a document or written already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else dumps(content)


class Api:
    """The application behind the `Guard`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._router = Router(
            [
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._model, methods=["GET"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/openapi.json", self._openapi, methods=["GET"]),
            ],
            redirect_slashes=False,
            default=_nowhere,
        )
        self.paths = [route.path for route in self._router.routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # With an application in it, a wrong method raises, so that errors have one shape.
        scope["app"] = self
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            raise ApiError(error.status_code, error.detail, headers=dict(error.headers or {})) from None
        except Gpt2cliError as error:
            refused = ApiError.of(error)
            if refused.status == 500:
                # For the log.
                raise
            raise refused from None

    async def _read_body(self, http: HttpRequest, schema: Schema) -> Any:
        """The body of a request, as ``schema`` says. Raises `ApiError`, `Gone`."""
        data = await read_body(http)
        if len(data) <= AT_ONCE:
            return parse_body(data, schema)
        # A long one must not keep the answers of others waiting.
        with self.service.preparing(http.state.owner):
            return await self.service.read(partial(parse_body, data, schema))

    # Texts

    async def _completions(self, http: HttpRequest) -> Response:
        return await self._generate(http, bodies.COMPLETION, read_completion, Completion)

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._generate(http, bodies.CHAT, read_chat, ChatCompletion)

    async def _generate(
        self, http: HttpRequest, schema: Schema, read: Read, kind: Callable[[Request], Answer]
    ) -> Response:
        """Everything is checked before the first byte of an answer."""
        body = await self._read_body(http, schema)
        self.service.check_open()
        model = choose(self.service.models, body.get("model"))
        with self.service.preparing(http.state.owner):
            request = await self.service.read(partial(read, body, model))
        self.service.check_open()
        ticket = Ticket(model, request.parts, *_who(http))
        answer = kind(request)
        record: Record = http.state.record
        record.prompt_tokens = sum(len(prompt.ids) for prompt in request.prompts)
        if request.stream:
            return Stream(self._chunks(http, ticket, answer), answer)
        async for _ in self._chunks(http, ticket, answer):
            pass
        if not answer.long:
            return JsonResponse(answer.whole())
        return JsonResponse(await self.service.read(lambda: dumps_long(answer.whole(), "choices")))

    async def _chunks(self, http: HttpRequest, ticket: Ticket, answer: Answer) -> Any:
        """What goes into the stream, while the answer comes; and what is counted of it."""
        record: Record = http.state.record
        last = ticket.came
        try:
            async with self.service.events(ticket, http.receive) as events:
                async for event in events:
                    if isinstance(event, Text):
                        last = time.perf_counter()
                        if record.first_token_s is None:
                            record.first_token_s = last - ticket.came
                    chunks: Iterable[Mapping[str, Any]] = answer.take(event)
                    if answer.begins_long(event):
                        chunks = await self.service.read(partial(list, chunks))
                    for chunk in chunks:
                        yield chunk
        finally:
            self._count(record, ticket, answer, last)

    def _count(self, record: Record, ticket: Ticket, answer: Answer, last: float) -> None:
        metrics = self.service.metrics
        drawn = sum(len(state.ids) for state in answer.states)
        record.completion_tokens = drawn
        metrics.prompt_tokens += record.prompt_tokens or 0
        metrics.cached_tokens += answer.cached
        metrics.generation_tokens += drawn
        metrics.tokens_read.add(record.prompt_tokens or 0)
        metrics.tokens_drawn.add(drawn)
        metrics.whole.add(record.seconds)
        if record.first_token_s is not None:
            metrics.first_token.add(record.first_token_s)
            longest = max(len(state.ids) for state in answer.states)
            if longest > 1:
                metrics.between_tokens.add((last - ticket.came - record.first_token_s) / (longest - 1))
        for state in answer.states:
            metrics.finished[state.finish_reason or "aborted"] += 1

    # The rest

    async def _embeddings(self, http: HttpRequest) -> Response:
        body = await self._read_body(http, bodies.EMBEDDINGS)
        self.service.check_open()
        model = choose(self.service.models, body.get("model"))
        with self.service.preparing(http.state.owner):
            inputs = await self.service.read(partial(read_inputs, body, model))
            await self.service.reference(model)
        parts = [Call(index, partial(_embed, ids)) for index, ids in enumerate(inputs)]
        vectors: dict[int, Any] = {}
        http.state.record.prompt_tokens = sum(map(len, inputs))
        async with self.service.events(Ticket(model, parts, *_who(http)), http.receive) as events:
            async for event in events:
                if isinstance(event, Computed):
                    vectors[event.index] = event.value
        return JsonResponse(
            await self.service.read(
                lambda: dumps_long(embeddings_document(body, model, inputs, vectors), "data")
            )
        )

    async def _models(self, http: HttpRequest) -> Response:
        return JsonResponse({"object": "list", "data": [model.document() for model in self.service.models]})

    async def _model(self, http: HttpRequest) -> Response:
        return JsonResponse(choose(self.service.models, http.path_params["model"]).document())

    async def _tokenize(self, http: HttpRequest) -> Response:
        body = await self._read_body(http, bodies.TOKENIZE)
        model = choose(self.service.models, body.get("model"))
        with self.service.preparing(http.state.owner):
            return JsonResponse(await self.service.read(partial(_tokens, body, model)))

    async def _detokenize(self, http: HttpRequest) -> Response:
        body = await self._read_body(http, bodies.DETOKENIZE)
        model = choose(self.service.models, body.get("model"))
        tokenizer, ids, size = tokenizer_of(model.ready), body["tokens"], model.checkpoint.config.vocab_size
        if max(ids, default=0) >= size:
            raise ApiError(400, f"tokens: the vocabulary has {size} tokens", param="tokens")
        with self.service.preparing(http.state.owner):
            return JsonResponse(await self.service.read(lambda: dumps({"prompt": tokenizer.decode(ids)})))

    async def _health(self, http: HttpRequest) -> Response:
        state = self.service.state
        return JsonResponse({"status": state}, status_code=200 if state == "ok" else 503)

    async def _metrics(self, http: HttpRequest) -> Response:
        worker = self.service.worker
        gauges = {
            "num_requests_running": (worker.running, "Texts that run."),
            "num_requests_waiting": (worker.waiting, "Requests that wait for their turn."),
            "kv_cache_usage_perc": (
                worker.cache_usage,
                "The share of the memory for keys and values in use.",
            ),
        }
        return Response(
            self.service.metrics.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def _openapi(self, http: HttpRequest) -> Response:
        return JsonResponse(openapi.document(__version__))


def _embed(ids: list[int], engine: Any) -> Any:
    return embed(engine, ids)


def _tokens(body: Mapping[str, Any], model: Served) -> bytes:
    """The answer to `/tokenize`. Raises `ApiError`, `UsageError`."""
    tokenizer, text = tokenizer_of(model.ready), body["prompt"]
    check_text(text, "prompt")
    ids = tokenizer.encode(text, template=body.get("add_special_tokens") is not False)
    document = {"count": len(ids), "max_model_len": model.checkpoint.config.n_positions, "tokens": []}
    data = dumps_long({**document, "tokens": ids}, "tokens", TOKENS_AT_ONCE)
    if body.get("return_token_strs"):
        texts = {"token_strs": [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]}
        data = data[:-1] + b"," + dumps_long(texts, "token_strs", TOKENS_AT_ONCE)[1:]
    return data


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, "there is nothing at this path", code="not_found")


def _who(http: HttpRequest) -> tuple[Hashable, Hashable]:
    """The key of a request, and the connection that it came by."""
    return http.state.owner, http.client or id(http.state.protocol)


async def read_body(http: HttpRequest) -> bytes:
    """The body of a request that says it is JSON. Raises `ApiError`, `Gone`."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON, with Content-Type: application/json", close=True)
    if http.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not read", close=True)
    return await _read_bytes(http)


def parse_body(data: bytes, schema: Schema) -> Any:
    """A body as ``schema`` says. Raises `ApiError`."""
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None
    check_body(schema, body)
    return body


async def _read_bytes(http: HttpRequest) -> bytes:
    """The body, within the limits of time and size. What is too much is read on for a while: who still sends
    does not read the answer."""
    data, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.BODY_S):
            while True:
                message = await http.receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                size += len(message.get("body", b""))
                if size <= limits.MAX_BODY:
                    data += message.get("body", b"")
                if not message.get("more_body") or size > limits.MAX_DISCARDED:
                    break
    except TimeoutError:
        raise ApiError(408, "the body did not come in time", close=True) from None
    if size > limits.MAX_BODY:
        raise ApiError(413, f"the body is larger than {limits.MAX_BODY} bytes", close=True)
    return bytes(data)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{shown(name)} is no JSON")
