"""JSON Schema, as much of it as our own schemas use: the same text checks requests and documents them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gpt2cli.api.errors import ApiError
from gpt2cli.options import shown

Schema = Mapping[str, Any]

_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "minimum": ("number", lambda value, limit: value >= limit, "is less than {}"),
    "maximum": ("number", lambda value, limit: value <= limit, "is more than {}"),
    "exclusiveMinimum": ("number", lambda value, limit: value > limit, "is not more than {}"),
    "minLength": ("string", lambda value, limit: len(value) >= limit, "has fewer than {} characters"),
    "maxLength": ("string", lambda value, limit: len(value) <= limit, "has more than {} characters"),
    "minItems": ("array", lambda value, limit: len(value) >= limit, "has fewer than {} entries"),
    "maxItems": ("array", lambda value, limit: len(value) <= limit, "has more than {} entries"),
    "maxProperties": ("object", lambda value, limit: len(value) <= limit, "has more than {} entries"),
}


class Mismatch(Exception):
    """A value is not what its schema says: where, and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


def check_body(schema: Schema, body: Any) -> None:
    """Raise `ApiError` unless ``body`` is as ``schema`` says."""
    try:
        check(schema, body, "")
    except Mismatch as error:
        where = error.path or "the body"
        raise ApiError(400, f"{where}: {error.reason}", param=error.path or None) from None


def check(schema: Schema, value: Any, path: str) -> None:
    """Raise `Mismatch` unless ``value`` is as ``schema`` says."""
    if "anyOf" in schema:
        _check_any(schema["anyOf"], value, path)
    kinds = schema.get("type")
    if kinds is not None:
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not any(_KINDS[kind](value) for kind in kinds):
            raise Mismatch(path, f"{shown(value)} is not {' or '.join(_WORDS[kind] for kind in kinds)}")
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(str(each) for each in schema["enum"] if each is not None)
        raise Mismatch(path, f"{shown(value)} is not allowed; allowed: {allowed}")
    for name, (kind, within, what) in _LIMITS.items():
        if name in schema and _KINDS[kind](value) and not within(value, schema[name]):
            raise Mismatch(path, what.format(schema[name]))
    if isinstance(value, dict):
        _check_object(schema, value, path)
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            check(schema["items"], item, f"{path}[{number}]")


def _check_any(schemas: list[Schema], value: Any, path: str) -> None:
    """One of the schemas must fit; what is said is what the one says that came nearest."""
    nearest: Mismatch | None = None
    for schema in schemas:
        try:
            check(schema, value, path)
            return
        except Mismatch as error:
            if nearest is None or len(error.path) > len(nearest.path) or _kind_fits(schema, value):
                nearest = error
    assert nearest is not None
    raise nearest


def _kind_fits(schema: Schema, value: Any) -> bool:
    kinds = schema.get("type", ())
    return any(_KINDS[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _check_object(schema: Schema, value: Mapping[str, Any], path: str) -> None:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise Mismatch(_joined(path, name), "it is missing")
    names, others = schema.get("propertyNames"), schema.get("additionalProperties", True)
    for name, item in value.items():
        if names is not None and not re.fullmatch(names["pattern"], name, re.ASCII):
            raise Mismatch(path, f"{shown(name)} is no name that is allowed here")
        if name in known:
            check(known[name], item, _joined(path, name))
        elif others is False:
            raise Mismatch(_joined(path, name[:60]), "there is no such field here")
        elif others is not True:
            check(others, item, _joined(path, name))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
