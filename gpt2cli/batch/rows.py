"""What a line of the input asks for: OpenAI's batch form, our own options, or a prompt as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2cli.api.errors import ApiError
from gpt2cli.batch.engine import CHAT, COMPLETIONS, Row
from gpt2cli.errors import UsageError
from gpt2cli.options import DEFAULT_MAX_NEW_TOKENS, MAX_SEED, shown

MAX_ID = 512
KEY_BYTES = 16
Fill = Callable[[str | None, Mapping[str, str] | None], str]
"""A prompt from a row's input and its fields; raises `UsageError`."""
_FIELDS = {"custom_id", "method", "url", "body"}
_OF_GENERATE = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
"""Options whose names in the API are other ones."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a row has that does not say otherwise, by the names of the API."""

    body: Mapping[str, Any]
    seed: int
    """The run's: each row has one of its own, made of this and its id."""
    fill: Fill | None = None
    """What makes a prompt of what a row gives; None where it stands as it is."""

    def seed_of(self, id: str) -> int:
        """The seed of the first text of a row."""
        digest = hashlib.sha256(f"{self.seed}\0{id}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:4], "big") % (MAX_SEED + 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A line as it stands. ``error`` is why it cannot be run."""

    id: str
    key: bytes
    """`KEY_BYTES` of a hash of the id and of all that is asked for."""
    url: str = COMPLETIONS
    body: Mapping[str, Any] | None = None
    own: bool = True
    """Whether it is in a form of ours, in which a text has as many tokens as that of `generate`."""
    error: ApiError | None = None

    def row(self, defaults: Defaults) -> Row:
        """What is to be run. Raises `UsageError` where a template cannot be filled in."""
        assert self.body is not None
        given = {name: value for name, value in self.body.items() if value is not None}
        body = {**defaults.body, **given}
        if defaults.fill is not None:
            body["prompt"] = self._filled(defaults.fill, body)
        if self.own and self.url == COMPLETIONS:
            body = {"max_tokens": DEFAULT_MAX_NEW_TOKENS, **body}
        if "max_completion_tokens" in given:
            body.pop("max_tokens", None)
        return Row(self.id, self.key.hex(), self.url, {"seed": defaults.seed_of(self.id), **body})

    def _filled(self, fill: Fill, body: dict[str, Any]) -> str | list[str]:
        """The prompt that a template makes of a row's; its ``fields`` are taken out of ``body``."""
        prompt, fields = body.get("prompt"), body.pop("fields", None)
        several = isinstance(prompt, list)
        inputs = prompt if isinstance(prompt, list) else [prompt]
        if self.url != COMPLETIONS or not all(isinstance(each, str | None) for each in inputs):
            raise UsageError("the template of the preset takes a text under prompt")
        if fields is not None and not (
            isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values())
        ):
            raise UsageError("fields: an object of texts")
        filled = [fill(each, fields) for each in inputs]
        return filled if several else filled[0]

    def refused(self, error: ApiError) -> Asked:
        """The same line, which cannot be run."""
        return Asked(self.id, self.key, error=error)

    def cost(self, size: int, defaults: Defaults) -> int:
        """About how many tokens it is, read and drawn; ``size`` are the bytes of the line."""
        new: Any = defaults.body.get("max_tokens", DEFAULT_MAX_NEW_TOKENS)
        if self.body is not None:
            given = (self.body.get(name) for name in ("max_completion_tokens", "max_tokens"))
            new = next((value for value in given if value is not None), new)
        whole = isinstance(new, int) and not isinstance(new, bool)
        return min(2**31, size // 4 + (min(max(new, 0), 2**16) if whole else 0))


def read_line(data: bytes, number: int, *, as_json: bool) -> Asked:
    """What the line ``number``, from 1, asks for. It never raises: what is wrong is in the `Asked`."""
    fallback = Asked(f"line-{number}", key_of(["line", number, hashlib.sha256(data).hexdigest()]))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refusal = ApiError(400, f"byte {error.start + 1} of the line is no UTF-8", code="invalid_utf8")
        found = _identified(data.decode("utf-8", "replace"), fallback) if as_json else fallback
        return found.refused(refusal)
    if not as_json:
        key = key_of([fallback.id, COMPLETIONS, {"prompt": text}])
        return Asked(fallback.id, key, body={"prompt": text})
    return _identified(text, fallback)


def key_of(parts: list[Any]) -> bytes:
    """`KEY_BYTES` that are the same for the same parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


def _identified(text: str, fallback: Asked) -> Asked:
    """The row in a line of JSON, or what can be said of it."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        return fallback.refused(ApiError(400, "the line is nested too deep", code="invalid_json"))
    except _NotANumber as error:
        name = _loose_id(text)
        found = fallback if name is None else Asked(name, fallback.key)
        return found.refused(ApiError(400, f"{error} is no number that JSON has", code="invalid_json"))
    except ValueError:
        return fallback.refused(ApiError(400, "the line is not valid JSON", code="invalid_json"))
    if not isinstance(data, dict):
        return fallback.refused(ApiError(400, "the line is no JSON object", code="invalid_json"))
    name = _id(data)
    asked = fallback if name is None else Asked(name, fallback.key)
    try:
        return _openai(data, asked) if _FIELDS & data.keys() - {"custom_id"} else _own(data, asked)
    except ApiError as error:
        return asked.refused(error)
    except RecursionError:
        # It could just be read, and not be written again.
        return asked.refused(ApiError(400, "the line is nested too deep", code="invalid_json"))


def _loose_id(text: str) -> str | None:
    """The id of a row that is JSON but for numbers that are none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _id(data) if isinstance(data, dict) else None


class _NotANumber(Exception):
    """NaN or an infinity."""


def _no_constant(name: str) -> Any:
    raise _NotANumber(name)


def _id(data: Mapping[str, Any]) -> str | None:
    """The id that a row gives itself, where it is one."""
    found = data.get("custom_id", data.get("id"))
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**63:
        found = str(found)
    return found if isinstance(found, str) and 0 < len(found) <= MAX_ID and found.isprintable() else None


def _openai(data: Mapping[str, Any], asked: Asked) -> Asked:
    """``custom_id``, ``method``, ``url``, ``body``. Raises `ApiError`."""
    if not isinstance(data.get("custom_id"), str) or _id(data) != data["custom_id"]:
        raise ApiError(400, f"custom_id: it is a text of 1 to {MAX_ID} characters", param="custom_id")
    for name in data.keys() - _FIELDS:
        raise ApiError(400, f"{name[:60]}: there is no such field here", param=name[:60])
    if data.get("method", "POST") != "POST":
        raise ApiError(400, f"method: {shown(data['method'])} is not POST", param="method")
    url, body = data.get("url"), data.get("body")
    if url not in (COMPLETIONS, CHAT):
        raise ApiError(400, f"url: {shown(url)} is not {COMPLETIONS} or {CHAT}", param="url")
    if not isinstance(body, dict):
        raise ApiError(400, f"body: {shown(body)} is not an object", param="body")
    return Asked(asked.id, key_of([asked.id, url, body]), url, body, own=False)


def _own(data: Mapping[str, Any], asked: Asked) -> Asked:
    """``prompt`` or ``messages``, maybe an id, and options by the names of `generate` or of the API.

    Raises `ApiError`.
    """
    body = {name: value for name, value in data.items() if name not in ("id", "custom_id")}
    given = data.get("custom_id", data.get("id"))
    if given is not None and _id(data) is None:
        raise ApiError(400, f"id: it is a whole number, or a text of 1 to {MAX_ID} characters", param="id")
    if body.keys().isdisjoint({"prompt", "messages", "fields"}):
        raise ApiError(400, "prompt: it is missing", param="prompt")
    for name, api_name in _OF_GENERATE.items():
        if name in body:
            if api_name in body:
                raise ApiError(400, f"{name} and {api_name} are the same", param=name)
            body[api_name] = body.pop(name)
    url = CHAT if "messages" in body else COMPLETIONS
    return Asked(asked.id, key_of([asked.id, url, body]), url, body)
