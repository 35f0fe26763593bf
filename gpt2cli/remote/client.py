"""A client of one server: finds out what it is, sends requests, tries again, and passes pieces on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from gpt2cli.errors import Gpt2cliError, ModelNotFound, PromptTooLong, Unavailable, UsageError
from gpt2cli.hub.transport import retry_after
from gpt2cli.options import MAX_SEED
from gpt2cli.remote.address import DEFAULT_PATH, KEY_VARIABLE
from gpt2cli.remote.answers import Reader, ServerFailed, events, message_of, parse
from gpt2cli.remote.asking import Request
from gpt2cli.remote.pieces import Piece, Usage
from gpt2cli.remote.servers import Kind, Model, flag, read_server
from gpt2cli.remote.wire import Answer, CutOff, Site, Stop, Stopped, Transient

T = TypeVar("T")

MAX_ERROR = 2**16
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_TOO_LONG = ("context length", "context size", "context is")


class Busy(Unavailable):
    """The server is there, and answers with a ``status`` that may pass."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, hint="try again later")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How often a request is repeated that failed before anything of its answer came."""

    retries: int = 5
    first_wait_s: float = 0.5
    most_wait_s: float = 8.0
    longest_wait_s: float = 60.0
    """The longest ``Retry-After`` that is waited for."""


class Client:
    """One model of one server. Its methods may be called from several threads at once.

    ``say`` is told, in one line, of each pause before another attempt.
    """

    def __init__(
        self, site: Site, *, policy: Policy | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.site, self.policy = site, policy or Policy()
        self.server = read_server(None)
        self.model = Model("")
        self._say = say or (lambda text: None)

    @property
    def kind(self) -> Kind:
        """What kind of server it is, once it is `connect`ed."""
        return self.server.kind

    @property
    def name(self) -> str:
        """The address with the model."""
        return f"{self.url}#{self.model.name}"

    @property
    def url(self) -> str:
        """The address, as it is shown."""
        return self.site.endpoint.url

    def connect(self, model: str | None, stop: Stop | None = None) -> None:
        """Ask for the models, and choose ``model``, or the only one.

        Raises `ModelNotFound`, which names those that there are, `UsageError` where one must be chosen, and
        `Unavailable`.
        """
        stop = stop or Stop()
        self.server = read_server(self._retried(lambda: self._models(stop), stop))
        models = self.server.models
        if model is None:
            if len(models) != 1:
                raise UsageError(
                    f"{self.url}: which model? there is {self.server.names() or 'no list of them'}",
                    hint=f"name one: -m {self.url}#MODEL",
                )
            self.model = models[0]
            return
        # ollama leaves this tag out where it takes names.
        named = [each for each in models if each.name in (model, f"{model}:latest")]
        if models and not named:
            raise ModelNotFound(
                f"{self.url}: there is no model {model[:100]!r} there", hint=f"there is {self.server.names()}"
            )
        self.model = named[0] if named else Model(model)

    def stream(self, request: Request, stop: Stop | None = None) -> Stream:
        """Send ``request``. The answer has begun when this returns; close the stream to end it early.

        Raises `Unavailable`, `UsageError`, `PromptTooLong`, and `Stopped`.
        """
        return Stream(self, request, stop or Stop())

    def ask(self, path: str, body: bytes, stop: Stop) -> tuple[int, object]:
        """The status and the JSON of the whole answer to a request; what breaks off is asked for again.

        Raises `Busy`, `Unavailable` where there is no server, or none for this key, and `Stopped`.
        """

        def attempt() -> tuple[int, object]:
            with self.site.request("POST", path, body, stop) as answer:
                if answer.status in _TRANSIENT or answer.status in (401, 403) or 300 <= answer.status < 400:
                    self._refuse(answer, path)
                try:
                    return answer.status, parse(answer.read())
                except CutOff as error:
                    if answer.status != 200:
                        return answer.status, None
                    raise Transient(Unavailable(f"{self.url}: {error}")) from None

        return self._retried(attempt, stop)

    def begin(self, request: Request, n: int, seed: int, stop: Stop) -> Generator[Answer, None, None]:
        """A generator that gives the head of an answer, and closes its connection when it is closed."""
        body = request.body(self.kind, self.model.name, n=n, seed=seed)

        def attempt() -> Generator[Answer, None, None]:
            opened = self._opened("POST", request.path, body, stop)
            next(opened)
            return opened

        try:
            return self._retried(attempt, stop)
        except UsageError as error:
            named = [name for name in request.given if self.kind.names.get(name, name) in str(error)]
            flags = ", ".join(map(flag, sorted(named)))
            error.hint = (
                f"see {flags}" if flags else f"asked for: {', '.join(sorted(request.given)) or 'no option'}"
            )
            raise

    def hidden(self, text: str) -> str:
        """``text`` without the key."""
        return self.site.key.hidden(text) if self.site.key is not None else text

    def _opened(
        self, method: str, path: str, body: bytes | None, stop: Stop
    ) -> Generator[Answer, None, None]:
        """Gives the answer twice: first when its status is known to be fine."""
        with self.site.request(method, path, body, stop) as answer:
            if answer.status != 200:
                self._refuse(answer, path)
            yield answer
            yield answer

    def _models(self, stop: Stop) -> object:
        opened = self._opened("GET", "/models", None, stop)
        try:
            answer = next(opened)
            return parse(answer.read())
        except CutOff as error:
            raise Unavailable(
                f"{self.url}/models: {error}", hint="the address of the API often ends in /v1"
            ) from None
        finally:
            opened.close()

    def _refuse(self, answer: Answer, path: str) -> None:
        """Raise the error that a status means for the user."""
        said = self._said(answer)
        status, url = answer.status, self.url
        why = f": {said}" if said else ""
        if status in _TRANSIENT:
            reason = "asks to slow down" if status == 429 else "cannot answer now"
            error = Busy(f"{url}: the server {reason} ({status}){why}", status)
            raise Transient(error, retry_after(answer.headers))
        if 300 <= status < 400:
            where = answer.headers.get("location", "")
            raise Unavailable(
                f"{url}: a redirect to {self.hidden(where)[:200]!r} is not followed: the key and the prompt "
                "would go there",
                hint="if that is the server you mean, give its address",
            )
        if status in (401, 403):
            given = "the key is refused" if self.site.key is not None else "it wants a key"
            given = given if status == 401 else "it refuses"
            raise Unavailable(
                f"{url}: {given} ({status}){why}",
                hint=f"write it into a file and give --api-key-file FILE, or set {KEY_VARIABLE}",
            )
        if status == 404 and path == "/models":
            usual = self.site.endpoint.path == DEFAULT_PATH
            raise Unavailable(
                f"{url}/models: there is nothing (404)",
                hint="is this a server of OpenAI's API?"
                if usual
                else "the address of the API often ends in /v1",
            )
        if status == 404:
            names = self.server.names()
            raise ModelNotFound(
                f"{url}: {said or 'not found (404)'}", hint=f"there is {names}" if names else None
            )
        if any(mark in why for mark in _TOO_LONG):
            raise PromptTooLong(f"{url}{why}", hint="shorten the prompt, or lower --max-new-tokens")
        raise UsageError(f"{url}: the server refuses the request ({status}){why}")

    def _said(self, answer: Answer) -> str:
        """What an error says, on one line, without the key."""
        try:
            text = message_of(parse(answer.read(MAX_ERROR)))
        except CutOff:
            return ""
        return self.hidden(text or "")

    def _retried(self, attempt: Callable[[], T], stop: Stop) -> T:
        policy, failures = self.policy, 0
        while True:
            try:
                return attempt()
            except Transient as failure:
                failures += 1
                asked = failure.retry_after
                if asked is not None and asked > policy.longest_wait_s:
                    raise Unavailable(f"{failure.error}; it asks to wait for {asked:.0f} s") from None
                if failures > policy.retries:
                    raise failure.error from None
                wait = min(policy.most_wait_s, policy.first_wait_s * 2 ** (failures - 1))
                wait = asked if asked is not None else wait * random.uniform(0.75, 1.25)
                self._say(f"{failure.error}; again in {wait:.1f} s")
                stop.wait(wait)


class Stream:
    """The pieces of the texts of one request, as they come; iterate over it once.

    It ends early where its `Stop` was set: texts that had not ended have ``finish_reason`` ``interrupted``.
    Where the server fails in the middle, the same is so and ``error`` says why. The times are in seconds from
    the call of `Client.stream`.
    """

    def __init__(self, client: Client, request: Request, stop: Stop) -> None:
        self.error: Gpt2cliError | None = None
        self.usage = Usage()
        self.first_token_s: float | None = None
        self.total_s = 0.0
        self._client, self._request, self._stop = client, request, stop
        self._started = time.perf_counter()
        n = request.options.num_return_sequences
        at_once = n == 1 or client.kind.several
        self._groups = [(0, n)] if at_once else [(index, 1) for index in range(n)]
        self._opened = self._begin(0)
        self._pieces = self._read()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens over the whole time: pieces come in bunches, so that times between them say little."""
        drawn = self.usage.completion_tokens
        return drawn / self.total_s if drawn and self.total_s > 0 else None

    def close(self) -> None:
        """End it, and the connection."""
        self._pieces.close()
        self._opened.close()

    def interrupt(self) -> None:
        """Have it end; safe to call from a signal handler."""
        self._stop.set()

    def _begin(self, group: int) -> Generator[Answer, None, None]:
        first, n = self._groups[group]
        seed = ((self._request.options.seed or 0) + first) % (MAX_SEED + 1)
        return self._client.begin(self._request, n, seed, self._stop)

    def _read(self) -> Generator[Piece, None, None]:
        ended: set[int] = set()
        try:
            with self._trouble():
                for group, (first, n) in enumerate(self._groups):
                    if group:
                        self._opened = self._begin(group)
                    for piece in self._texts(first, n):
                        if self.first_token_s is None and (piece.text or piece.tokens):
                            self.first_token_s = time.perf_counter() - self._started
                        if piece.finish_reason is not None:
                            ended.add(piece.sequence)
                        yield piece
            for index in range(self._request.options.num_return_sequences):
                if index not in ended:
                    yield Piece(index, finish_reason="interrupted")
        finally:
            self.total_s = time.perf_counter() - self._started
            self._opened.close()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Keep what goes wrong once there is text: it is told after the text."""
        url = self._client.url
        try:
            yield
        except Stopped:
            pass
        except CutOff as error:
            self.error = Gpt2cliError(
                f"{url}: {error}", hint="what came is kept; the same seed gives it again from the start"
            )
        except ServerFailed as error:
            self.error = Gpt2cliError(
                f"{url}: the server failed: {self._client.hidden(str(error))}", hint="its log may say more"
            )
        except Gpt2cliError as error:
            self.error = error

    def _texts(self, first: int, n: int) -> Iterator[Piece]:
        """The pieces of one answer. Raises `CutOff`, `ServerFailed`, `Stopped`."""
        reader = Reader(n, self._request.options.stop, first)
        answer = next(self._opened)
        documents = events(answer.lines()) if answer.is_stream else iter([parse(answer.read())])
        try:
            for document in documents:
                yield from reader.read(document)
        finally:
            self.usage = self.usage.plus(reader.usage)
        self._opened.close()
        if not reader.complete:
            raise CutOff("the answer ended before its end")
