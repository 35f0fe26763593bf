"""Reading files that nobody vouches for: a cap on their size, JSON without surprises."""

from __future__ import annotations

import json
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
