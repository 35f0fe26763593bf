"""Greedy continuations of the published models, as other projects' tests have them.

They are data, in ``reference_texts.json``: each with the project, file and revision it was read from. Those
are kept that plain greedy decoding in fp32 must reproduce; texts of beams, of a GPU's random numbers or of
half precision are not among them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Continuation:
    """One prompt and the text that a model must make of it.

    ``text`` begins with the prompt; so do ``token_ids``, where the source gives them.
    """

    id: str
    repository: str
    prompt: str
    max_new_tokens: int
    text: str
    token_ids: tuple[int, ...] | None
    source: str


def continuations(repository: str) -> tuple[Continuation, ...]:
    """What is published of the model of that repository; empty where nothing is."""
    return tuple(fact for fact in _all() if fact.repository == repository)


@cache
def _all() -> tuple[Continuation, ...]:
    data = json.loads((resources.files(__package__) / "reference_texts.json").read_text("utf-8"))
    return tuple(
        Continuation(
            entry["id"],
            entry["model"],
            case["prompt"],
            case["max_new_tokens"],
            case["text"],
            tuple(case["token_ids"]) if "token_ids" in case else None,
            _source(entry["source"]),
        )
        for entry in data["greedy"]
        for case in entry["cases"]
    )


def _source(source: dict[str, str | None]) -> str:
    commit = f" @ {source['commit']}" if source["commit"] else ""
    test = f", {source['test']}" if source.get("test") else ""
    return f"{source['repo']}: {source['path']}{commit}{test}"
