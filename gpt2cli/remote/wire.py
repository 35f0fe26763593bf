"""HTTP/1.1 to one server, by the standard library, with deadlines and nothing that is followed.

A redirect is an error: the key, and the prompt, go where the user said and nowhere else.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from gpt2cli import __version__
from gpt2cli.errors import Gpt2cliError, Unavailable, UsageError
from gpt2cli.remote.address import Endpoint, Key
from gpt2cli.text.sanitize import one_line

CONNECT_S = 10.0
DEFAULT_TIMEOUT_S = 300.0
BLOCK = 2**16
MAX_LINE = 2**24
"""Bytes of one line of a stream; a line holds one event."""
MAX_BODY = 2**26


class Transient(Exception):
    """A failure that may pass. ``error`` is what the user is told when it does not."""

    def __init__(self, error: Gpt2cliError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.retry_after = error, retry_after


class Silent(Unavailable):
    """The server is there, and does not answer in time."""


class CutOff(Exception):
    """The answer ended before its end, or is not what it should be; why is the exception's text."""


class Stopped(Exception):
    """`Stop.set` was called."""


class Stop:
    """Ends what waits for a server, from a signal handler or another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._sockets: list[socket.socket] = []

    def set(self) -> None:
        """Stop: reads end at once, and nothing new begins."""
        self._event.set()
        for each in list(self._sockets):
            _shut(each)

    @property
    def is_set(self) -> bool:
        """Whether it was."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Pause. Raises `Stopped`."""
        if self._event.wait(seconds):
            raise Stopped

    def watch(self, sock: socket.socket) -> None:
        """Have ``sock`` shut when it is time. Raises `Stopped`."""
        self._sockets.append(sock)
        if self.is_set:
            raise Stopped

    def forget(self, sock: socket.socket) -> None:
        """It is closed."""
        with suppress(ValueError):
            self._sockets.remove(sock)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not the method of a TLS socket, which would unmake what a read is in the middle of.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Reader(io.RawIOBase):
    """The bytes of a socket, each read of which ends by ``deadline``."""

    def __init__(self, sock: socket.socket, wire: _Wire) -> None:
        self._sock, self._wire = sock, wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        left = self._wire.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)  # type: ignore[arg-type]


class _Wire:
    """What `http.client` takes for a socket."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock, self._seconds = sock, seconds
        self.deadline = 0.0
        self.expect()

    def expect(self) -> None:
        """From now on the server has so much time for the next thing."""
        self.deadline = time.monotonic() + self._seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self), BLOCK)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._seconds)
        self._sock.sendall(data)

    def close(self) -> None:
        """Not yet: http.client closes its socket when the head has come, and the body is still to be read."""


@dataclass(frozen=True, slots=True)
class Site:
    """A server with what it takes to talk to it."""

    endpoint: Endpoint
    key: Key | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Seconds in which something must come: the head of an answer, then each line of it."""
    patient: bool = False
    """Whether a server that is not there may come back."""

    @contextmanager
    def request(self, method: str, path: str, body: bytes | None, stop: Stop) -> Iterator[Answer]:
        """The answer to a request, its body not read yet.

        Raises `Transient`, `Stopped`, `Unavailable`, and within the block what reading does.
        """
        connection = self._connect(stop)
        sock = connection.sock
        wire = _Wire(sock, self.timeout_s)
        try:
            stop.watch(sock)
            connection.sock = wire
            with self._failures(stop):
                connection.request(method, self._target(path), body, self._headers(body))
                wire.expect()
                response = connection.getresponse()
            with response:
                yield Answer(response, wire, self, stop)
        finally:
            stop.forget(sock)
            connection.close()
            sock.close()

    def _connect(self, stop: Stop) -> http.client.HTTPConnection:
        endpoint = self.endpoint
        proxy = _proxy(endpoint)
        host, port = endpoint.host, endpoint.port
        if proxy is not None:
            host, port = proxy.hostname or "", proxy.port or 80
        connection: http.client.HTTPConnection
        seconds = min(CONNECT_S, self.timeout_s)
        with self._failures(stop, seconds):
            if endpoint.secure:
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
                if proxy is not None:
                    connection.set_tunnel(endpoint.host, endpoint.port)
            else:
                connection = http.client.HTTPConnection(host, port, timeout=seconds)
            connection.connect()
        return connection

    def _target(self, path: str) -> str:
        whole = self.endpoint.path + path
        through = not self.endpoint.secure and _proxy(self.endpoint) is not None
        return f"http://{self.endpoint.netloc}{whole}" if through else whole

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {
            "Host": self.endpoint.netloc,
            "User-Agent": f"gpt2cli/{__version__}",
            "Connection": "close",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key is not None:
            headers["Authorization"] = self.key.header()
        return headers

    @contextmanager
    def _failures(self, stop: Stop, seconds: float | None = None) -> Iterator[None]:
        """Turn what the network does into our errors; ``seconds`` are those that it has to connect."""
        url = self.endpoint.url
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(
                f"{url}: its certificate is not trusted: {one_line(error.verify_message)[:200]}",
                hint="SSL_CERT_FILE names the certificates of a network that has its own",
            ) from None
        except ssl.SSLError as error:
            self._check(stop)
            reason = one_line(error.reason or str(error))[:200]
            raise Unavailable(
                f"{url}: no secure connection: {reason}", hint="is it an http:// address?"
            ) from None
        except TimeoutError:
            self._check(stop)
            if seconds is not None:
                raise Unavailable(
                    f"{url}: no connection in {seconds:g} s", hint="is the address right, and the server up?"
                ) from None
            raise Silent(
                f"{url}: no answer in {self.timeout_s:g} s", hint="--timeout S waits longer"
            ) from None
        except ConnectionRefusedError:
            nobody = Unavailable(
                f"{url}: nothing listens there", hint="start the server, or correct the address"
            )
            raise (Transient(nobody) if self.patient else nobody) from None
        except socket.gaierror:
            raise Unavailable(f"{url}: there is no such host", hint="correct the address") from None
        except ConnectionError:
            self._check(stop)
            raise Transient(
                Unavailable(f"{url}: the server closed the connection without an answer")
            ) from None
        except http.client.HTTPException as error:
            self._check(stop)
            raise Unavailable(
                f"{url}: what answers there does not speak HTTP ({type(error).__name__})",
                hint="is it an https:// address?",
            ) from None
        except OSError as error:
            self._check(stop)
            raise Unavailable(f"{url}: {one_line(error.strerror or str(error))[:200]}") from None

    def _check(self, stop: Stop) -> None:
        if stop.is_set:
            raise Stopped from None


def _proxy(endpoint: Endpoint) -> SplitResult | None:
    """The proxy that the environment names for a server; none is asked for this machine.

    Raises `UsageError` where it is none of ours.
    """
    name = f"{endpoint.scheme}_proxy"
    text = os.environ.get(name) or os.environ.get(name.upper() if endpoint.secure else name) or ""
    if not text or endpoint.is_loopback:
        return None
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    if proxy_bypass_environment(endpoint.host):
        return None
    parts = urlsplit(text if "//" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname or parts.username is not None:
        raise UsageError(
            f"{name}: only a proxy of the form http://host:port can be used here",
            hint=f"or go around it: NO_PROXY={endpoint.host}",
        )
    return parts


class Answer:
    """The head of an answer, and its body as it is read."""

    def __init__(self, response: http.client.HTTPResponse, wire: _Wire, site: Site, stop: Stop) -> None:
        self._response, self._wire, self._site, self._stop = response, wire, site, stop
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.getheaders()}
        self._left = response.length

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events."""
        return self.headers.get("content-type", "").lower().startswith("text/event-stream")

    def read(self, limit: int = MAX_BODY) -> bytes:
        """The whole body. Raises `CutOff`, `Stopped`."""
        body = bytearray()
        self._wire.expect()
        while block := self._block():
            body += block
            if len(body) > limit:
                raise CutOff(f"the answer is longer than {limit} bytes")
        return bytes(body)

    def lines(self) -> Iterator[bytes]:
        """The lines of the body, as they come. Raises `CutOff`, `Stopped`."""
        held = bytearray()
        searched = 0
        self._wire.expect()
        while block := self._block():
            held += block
            while (at := held.find(b"\n", searched)) >= 0:
                yield bytes(held[:at]).removesuffix(b"\r")
                del held[: at + 1]
                searched = 0
                self._wire.expect()
            searched = len(held)
            if searched > MAX_LINE:
                raise CutOff(f"it sends a line of more than {MAX_LINE} bytes")
        if held:
            yield bytes(held)

    def _block(self) -> bytes:
        if self._stop.is_set:
            raise Stopped
        try:
            block = self._response.read1(BLOCK)
        except TimeoutError:
            raise CutOff(f"nothing came for {self._site.timeout_s:g} s") from None
        except (http.client.HTTPException, OSError, ValueError):
            block = b""
            if not self._stop.is_set:
                raise CutOff("the connection broke") from None
        if self._stop.is_set:
            raise Stopped
        if self._left is not None:
            self._left -= len(block)
            if not block and self._left > 0:
                raise CutOff("the connection broke")
        return block
