"""Requests to the Hub: through huggingface_hub's session and headers, with rules of our own.

- The token goes to the Hub's own host over https. To another endpoint (``HF_ENDPOINT``) it goes only when
  that is asked for, and never over plain http but to this machine. A redirect to another host, port or
  scheme never carries it.
- A request that fails for a reason that may pass is repeated, with a growing pause, a bounded number of
  times. ``Retry-After`` is obeyed; where it asks for longer than `Policy.longest_wait_s`, we end instead.

Proxies, certificates, ``HF_TOKEN`` and the token file are huggingface_hub's affair.
"""

from __future__ import annotations

import importlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from gpt2cli.errors import Gpt2cliError, ModelNotFound, Unavailable, UsageError
from gpt2cli.options import shown
from gpt2cli.text.sanitize import one_line

T = TypeVar("T")

OFFICIAL_HOSTS = ("huggingface.co", "hf.co")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429)
_TOKEN_TEXT = re.compile(r"[\x21-\x7e]+")

RESUME_HINT = "what has come is kept: the same command goes on from there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long to wait, and how often to try again. A stall is ``stall_s`` at under ``least_rate``."""

    connect_s: float = 10.0
    stall_s: float = 30.0
    least_rate: float = 1024.0
    """Bytes a second."""
    retries: int = 5
    """Failures in a row, without a mebibyte of progress between them."""
    first_wait_s: float = 0.5
    most_wait_s: float = 8.0
    longest_wait_s: float = 60.0
    """The longest ``Retry-After`` that is waited for."""
    answer_s: float = 60.0
    """Seconds for the whole of a short answer."""
    silence_s: float = 600.0
    """Seconds without any progress after which a pull is given up."""


class Transient(Exception):
    """A failure that may pass. ``error`` is what the user is told when it does not."""

    def __init__(self, error: Gpt2cliError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.retry_after = error, retry_after


class Stopped(Exception):
    """The pull was given up elsewhere; raised in its workers only."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A server that speaks the Hub's protocol. ``send_token`` trusts it with the token."""

    endpoint: str
    send_token: bool = False
    version: str | None = None

    @classmethod
    def from_environment(cls, *, send_token: bool = False, version: str | None = None) -> Hub:
        """The Hub, or what ``HF_ENDPOINT`` names. Raises `UsageError` when that is no address."""
        from huggingface_hub import constants

        endpoint = str(constants.ENDPOINT)
        if not _is_web_address(endpoint):
            raise UsageError(f"HF_ENDPOINT: {shown(endpoint)} is not an http or https address")
        return cls(endpoint, send_token, version)

    @property
    def shown(self) -> str:
        """The endpoint for messages and manifests, without a password."""
        parts = urlsplit(self.endpoint)
        return one_line(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())

    @property
    def may_have_token(self) -> bool:
        """Whether the endpoint may be sent the token."""
        scheme, host, _ = _origin(self.endpoint)
        if scheme == "https":
            return host in OFFICIAL_HOSTS or self.send_token
        return self.send_token and host in LOOPBACK_HOSTS

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        policy: Policy,
        headers: Mapping[str, str] | None = None,
        *,
        to_other_hosts: bool = True,
    ) -> Iterator[Any]:
        """The response to a request, its body not read yet; redirects are followed.

        Without ``to_other_hosts`` a redirect that leaves the endpoint is itself the response. Raises
        `Transient` for what the network does, `Unavailable` for redirects that are refused.
        """
        timeout = (policy.connect_s, policy.stall_s, policy.stall_s, policy.connect_s)
        for _ in range(MAX_REDIRECTS):
            with (
                _network_errors(self),
                _session().stream(
                    method,
                    url,
                    headers={**self._headers(url), **(headers or {})},
                    follow_redirects=False,
                    timeout=timeout,
                ) as response,
            ):
                target = self._redirect(url, response)
                if target is None or not (to_other_hosts or _origin(target) == _origin(self.endpoint)):
                    yield response
                    return
                url = target
        raise Unavailable(f"{self.shown}: too many redirects")

    def _redirect(self, url: str, response: Any) -> str | None:
        """Where a response sends us, if it does."""
        location: str | None = response.headers.get("location")
        if response.status_code not in _REDIRECTS or not location:
            return None
        try:
            target = urljoin(url, location)
        except ValueError:
            target = ""
        if not _is_web_address(target):
            raise Unavailable(f"{self.shown}: a redirect to {shown(location)} is refused")
        if url.startswith("https:") and not target.startswith("https:"):
            raise Unavailable(f"{self.shown}: a redirect from https to plain http is refused")
        return target

    def _headers(self, url: str) -> dict[str, str]:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        # Else the helper asks the endpoint for a list of agents to report, past all rules of ours.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        allowed = self.may_have_token and _origin(url) == _origin(self.endpoint)
        try:
            headers = build_hf_headers(
                token=None if allowed else False, library_name="gpt2cli", library_version=self.version
            )
        except Exception as error:
            # Whatever it is that reads a token file or renews a token: the message may hold the token.
            raise Unavailable(
                f"the Hugging Face token cannot be had ({type(error).__name__})", hint="run: hf auth login"
            ) from None
        # The HTTP library's own complaint would show the token.
        token = headers.get("authorization", "Bearer x").partition(" ")[2]
        if not _TOKEN_TEXT.fullmatch(token):
            raise UsageError("the Hugging Face token holds characters that no token has", hint="see HF_TOKEN")
        headers["accept-encoding"] = "identity"
        return dict(headers)


def _session() -> Any:
    """huggingface_hub's HTTP session. Raises `UsageError` when the environment does not let it be made."""
    from huggingface_hub import get_session

    try:
        return get_session()
    except Exception as error:
        # A proxy's address may hold a password.
        reason = type(error).__name__ if "@" in str(error) else one_line(str(error))[:200]
        raise UsageError(
            f"the settings of the network are wrong: {reason}",
            hint="see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR",
        ) from None


@contextmanager
def _network_errors(hub: Hub) -> Iterator[None]:
    """Turn what the HTTP library raises into `Transient`."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    # httpx or httpx2, by the version of huggingface_hub.
    library = importlib.import_module(type(_session()).__module__.partition(".")[0])
    try:
        yield
    except OfflineModeIsEnabled:
        raise Unavailable("offline (HF_HUB_OFFLINE is set)") from None
    except library.TimeoutException:
        raise Transient(_unreachable(hub, "no answer in time")) from None
    except (library.InvalidURL, UnicodeError) as error:
        raise Unavailable(f"{hub.shown}: {one_line(str(error))[:200]}") from None
    except (library.HTTPError, library.StreamError) as error:
        reason = one_line(str(error))[:200] or type(error).__name__
        raise Transient(_unreachable(hub, reason)) from None


def _unreachable(hub: Hub, reason: str) -> Unavailable:
    hint = "check the network, and HTTPS_PROXY where there is a proxy; what is on this disk works offline"
    if "CERTIFICATE" in reason.upper():
        hint = "SSL_CERT_FILE names the certificates of a network that has its own"
    return Unavailable(f"cannot reach {hub.shown}: {reason}", hint=hint)


def check_status(hub: Hub, response: Any, what: str) -> None:
    """Raise the error that a status means for the user; ``what`` is a model or a file of one.

    Raises `ModelNotFound` (404), `Unavailable` (401, 403 and the rest), `Transient` (429, 5xx).
    """
    status = response.status_code
    if status < 300:
        return
    foreign = _origin(str(response.request.url)) != _origin(hub.endpoint)
    if status in _TRANSIENT or status >= 500:
        reason = "asks to slow down" if status == 429 else "cannot answer now"
        error = Unavailable(
            f"{what}: {hub.shown} {reason} ({status})", hint="try again later; " + RESUME_HINT
        )
        raise Transient(error, retry_after(response.headers))
    if foreign:
        # The address of a large file is signed and expires: the next try is given a new one.
        raise Transient(Unavailable(f"{what}: the file server refuses ({status})", hint=RESUME_HINT))
    code = response.headers.get("x-error-code", "")
    if status == 404:
        if code == "RevisionNotFound":
            raise ModelNotFound(f"{what}: no such revision at {hub.shown}")
        raise ModelNotFound(f"{what}: not found at {hub.shown} (404)", hint="check the spelling: owner/name")
    if code == "GatedRepo":
        raise Unavailable(
            f"{what}: gated ({status}): its conditions are not accepted, or the token is missing or wrong",
            hint=f"accept them on the model's page at {hub.shown}, and set HF_TOKEN or run: hf auth login",
        )
    if status in (401, 403):
        raise Unavailable(
            f"{what}: it does not exist, or it is private and the token is missing or wrong ({status})",
            hint=_token_hint(hub),
        )
    raise Unavailable(f"{what}: {hub.shown} answers {status}")


def _token_hint(hub: Hub) -> str:
    if not hub.may_have_token:
        return (
            f"check the spelling; no token is sent to {hub.shown} (to send it there, over https: "
            "gpt2cli config set send_token true)"
        )
    return "check the spelling; for a private model set HF_TOKEN or run: hf auth login"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a ``Retry-After`` asks for, in either of its forms."""
    value = str(headers.get("retry-after", "")).strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    with suppress(ValueError, TypeError, OverflowError):
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return None


class Pauses:
    """The pauses between attempts; ``stop`` ends one at once."""

    def __init__(self, policy: Policy, stop: threading.Event, say: Callable[[str, float], None]) -> None:
        self._policy, self._stop, self._say = policy, stop, say
        self._failures = 0

    def reset(self) -> None:
        """Count anew: there was progress."""
        self._failures = 0

    def after(self, failure: Transient) -> None:
        """Wait before the next attempt. Raises the failure's own error when there is to be none."""
        self._failures += 1
        policy = self._policy
        asked = failure.retry_after
        if asked is not None and asked > policy.longest_wait_s:
            raise Unavailable(f"{failure.error}; try again in {asked:.0f} s", hint=RESUME_HINT)
        if self._failures > policy.retries:
            raise failure.error
        wait = min(policy.most_wait_s, policy.first_wait_s * 2 ** (self._failures - 1))
        wait = asked if asked is not None else wait * random.uniform(0.75, 1.25)
        self._say(str(failure.error), wait)
        if self._stop.wait(wait):
            raise Stopped


def retrying(pauses: Pauses, attempt: Callable[[], T]) -> T:
    """The result of ``attempt``, repeated while it raises `Transient`."""
    while True:
        try:
            return attempt()
        except Transient as failure:
            pauses.after(failure)


def read_answer(hub: Hub, response: Any, limit: int, policy: Policy) -> bytes:
    """The body of a short answer. Raises `Transient` for a slow one, `Unavailable` for a long one."""
    deadline = time.monotonic() + policy.answer_s
    body = bytearray()
    for block in response.iter_raw():
        body += block
        if len(body) > limit:
            raise Unavailable(f"{hub.shown}: the answer is longer than {limit} bytes")
        if time.monotonic() > deadline:
            raise Transient(_unreachable(hub, "the answer comes too slowly"))
    return bytes(body)


def _is_web_address(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80)
