"""What is written of a finished row: a line in OpenAI's batch form, or a simple one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpt2cli.api.answers import encode
from gpt2cli.batch.engine import Finished

Form = Literal["openai", "simple"]
_PREFIX = "batch_req_"
_KEY = re.compile(r"[0-9a-f]{32}")


def line_of(finished: Finished, form: Form) -> bytes:
    """A line, with its end."""
    document = _openai(finished) if form == "openai" else _simple(finished)
    return encode(document) + b"\n"


def _openai(finished: Finished) -> dict[str, Any]:
    error = None
    if finished.failed:
        told = finished.body["error"]
        error = {"code": told.get("code") or told.get("type"), "message": told["message"]}
    return {
        "id": _PREFIX + finished.key,
        "custom_id": finished.id,
        "response": {
            "status_code": finished.status,
            "request_id": f"req_{finished.key}",
            "body": finished.body,
        },
        "error": error,
    }


def _simple(finished: Finished) -> dict[str, Any]:
    head = {"id": finished.id, "key": finished.key}
    if finished.failed:
        return {**head, "error": finished.body["error"]["message"]}
    choices, usage = finished.body["choices"], finished.body.get("usage", {})
    texts = [_text(choice) for choice in choices]
    document: dict[str, Any] = {**head, "text": texts[0]}
    if len(texts) > 1:
        document["texts"] = texts
    return {
        **document,
        "finish_reason": choices[0].get("finish_reason"),
        "seed": choices[0].get("seed"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }


def _text(choice: Mapping[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


@dataclass(frozen=True, slots=True)
class Written:
    """A line that is there already."""

    key: bytes
    failed: bool


def read_written(line: bytes) -> Written | None:
    """What a line says of its row; None where it is no whole line of ours."""
    try:
        document = json.loads(line)
        key = str(document.get("key") or str(document["id"]).removeprefix(_PREFIX))
        if not _KEY.fullmatch(key):
            return None
        return Written(bytes.fromhex(key), document.get("error") is not None)
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None


def all_written(lines: Iterable[bytes]) -> Iterator[Written | None]:
    """The same of many."""
    return map(read_written, lines)
