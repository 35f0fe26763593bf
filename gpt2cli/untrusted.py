"""Reading files that nobody vouches for: a cap on their size, JSON without surprises, fields with types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2cli.errors import ModelFileError
from gpt2cli.options import shown


def open_file(path: Path) -> Any:
    """``path`` for reading in binary. Raises `ModelFileError` when it is no regular file, or unreadable."""
    try:
        if not path.is_file():
            raise ModelFileError(f"{path}: not a regular file")
        return path.open("rb")
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None


def read_capped(path: Path, limit: int) -> bytes:
    """The content of ``path``. Raises `ModelFileError` over ``limit`` bytes."""
    with open_file(path) as file:
        data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise ModelFileError(f"{path}: larger than {limit} bytes")
    return data


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in ``path``. Raises `ModelFileError` over ``limit`` bytes or when it is no JSON object."""
    return parse_json(read_capped(path, limit), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object ``data`` from ``path``. Raises `ModelFileError`, also for a key that comes twice."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ModelFileError(f"{path}: a key comes twice")
        return table

    try:
        value = json.loads(data, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not valid JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: not a JSON object")
    return value


class Fields:
    """Typed access to the fields of a JSON object; every complaint names the file and the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self._raw, self._path = raw, path

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``. Raises `ModelFileError`."""
        value = self._raw.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise ModelFileError(f"{self._path}: {name} is {shown(value)}; allowed: {low} to {high}")
        return value

    def switch(self, name: str, default: bool) -> bool:
        """True or false. Raises `ModelFileError`."""
        value = self._raw.get(name, default)
        if type(value) is not bool:
            raise ModelFileError(f"{self._path}: {name} is {shown(value)}; allowed: true, false")
        return value

    def fraction(self, name: str, default: float) -> float:
        """A number from 0 to 1, exclusive. Raises `ModelFileError`."""
        value = self._raw.get(name, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ModelFileError(f"{self._path}: {name} is {shown(value)}; allowed: 0 to 1 (exclusive)")
        return float(value)

    def token_id(self, name: str, vocab_size: int) -> int | None:
        """The id of a special token, the first of several. Raises `ModelFileError`."""
        return next(iter(self.token_ids(name, vocab_size)), None)

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """The ids of a special token; one outside the vocabulary counts as unset. Raises `ModelFileError`."""
        value = self._raw.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int for v in values):
            raise ModelFileError(f"{self._path}: {name} is {shown(value)}; allowed: a token id, or several")
        return tuple(v for v in values if 0 <= v < vocab_size)
