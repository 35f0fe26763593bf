"""Where a server is, which of its models is meant, and the key that it may want."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from gpt2cli.errors import UsageError
from gpt2cli.options import shown

DEFAULT_PATH = "/v1"
KEY_VARIABLE = "GPT2CLI_API_KEY"

_PLAIN = re.compile(r"[\x21-\x7e]+")
_LOOPBACK = re.compile(r"localhost|::1|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_PATH = re.compile(r"[A-Za-z0-9/._~%:@!$&'()*+,;=-]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of an API, up to and with its ``/v1``."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        """The host as an address has it, and the port unless it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as it is shown."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def secure(self) -> bool:
        """Whether what is sent is encrypted."""
        return self.scheme == "https"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        return _LOOPBACK.fullmatch(self.host) is not None


class Key:
    """A key. It is shown nowhere: not by ``repr``, and in no error."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not _PLAIN.fullmatch(text):
            raise UsageError("the API key holds characters that no key has", hint="one line, no spaces")
        self._text = text

    def __repr__(self) -> str:
        return "Key(…)"

    def header(self) -> str:
        """The value of ``Authorization``."""
        return f"Bearer {self._text}"

    def hidden(self, text: str) -> str:
        """``text`` without the key, should a server have repeated it."""
        return text.replace(self._text, "…") if len(self._text) >= 4 else text


def is_address(text: str | None) -> bool:
    """Whether ``-m`` names a server and not a model here."""
    return text is not None and text.lower().startswith(("http://", "https://"))


def parse_address(text: str) -> tuple[Endpoint, str | None]:
    """The server that ``http://host:8000/v1#MODEL`` means, and the model if it names one.

    Without a path it is ``/v1``. Raises `UsageError`, which never shows a password.
    """
    parts = _split(text)
    if "@" in parts.netloc:
        raise UsageError(
            "an address with a user or a password in it is refused: process lists and logs would show it",
            hint=f"write a key into a file and give --api-key-file FILE, or set {KEY_VARIABLE}",
        )
    if parts.query:
        raise UsageError(
            "the address of a server has no ?… part", hint=f"a key goes into {KEY_VARIABLE} or a file"
        )
    try:
        port = parts.port
    except ValueError:
        raise UsageError(f"{shown(text)}: a port is a number from 1 to 65535") from None
    host = parts.hostname or ""
    plain = _PLAIN.fullmatch(text.partition("#")[0])
    if not host or not plain or not _PLAIN.fullmatch(host) or not _PATH.fullmatch(parts.path) or port == 0:
        raise UsageError(
            f"{shown(text)} is not the address of a server", hint="http://127.0.0.1:8000/v1#MODEL"
        )
    scheme = parts.scheme.lower()
    path = parts.path.rstrip("/") or DEFAULT_PATH
    return Endpoint(scheme, host, port or (443 if scheme == "https" else 80), path), parts.fragment or None


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UsageError(
            "this is not the address of a server", hint="http://127.0.0.1:8000/v1#MODEL"
        ) from None
    if parts.scheme.lower() not in ("http", "https"):
        raise UsageError(
            f"{shown(text.rpartition('@')[2])} is not an http or https address",
            hint="http://127.0.0.1:8000/v1#MODEL",
        )
    return parts
