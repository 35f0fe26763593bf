"""Texts that stand behind others, or have parts that nobody vouches for: how they are tokenised.

The library puts a space before a text for some tokenizers (Llama's), and reads special tokens in all of a
text or in none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class TextPart(NamedTuple):
    """A part of a text. In one that is ``trusted`` special tokens are tokens."""

    text: str
    trusted: bool


def continuing(backend: Any, *, after_special: bool = False) -> Any:
    """A tokenizer like ``backend`` for what stands behind something else; itself where that is the same.

    It puts no space before a text. ``after_special`` is for what stands behind a special token of the same
    text, where the library leaves out the space of Metaspace's ``first`` only.
    """
    table = {
        part: json.loads(component.__getstate__())
        for part in ("normalizer", "pre_tokenizer")
        if (component := getattr(backend, part)) is not None
    }
    changed = {part: _without_prefix(state, after_special) for part, state in table.items()}
    if changed == table:
        return backend
    whole = json.loads(backend.to_str())
    return type(backend).from_str(json.dumps({**whole, **changed}))


def _without_prefix(state: dict[str, Any], after_special: bool) -> dict[str, Any]:
    kind = state["type"]
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in state else "pretokenizers"
        return {**state, name: [_without_prefix(part, after_special) for part in state[name]]}
    if kind == "Metaspace" and state["prepend_scheme"] in ("first",) + (() if after_special else ("always",)):
        return {**state, "prepend_scheme": "never"}
    if after_special:
        return state
    if kind == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if kind == "ByteLevel":
        return {**state, "add_prefix_space": False}
    return state


class Span(NamedTuple):
    """The ids of a section, or of one special token that is really one, and where its text lies."""

    ids: list[int]
    begin: int
    end: int
    sound: bool
    """Whether no special token is in it that was only typed."""
    special: bool = False


def spans(encoding: Any, whole: str, parts: Sequence[TextPart], special: dict[int, str]) -> Iterator[Span]:
    """The sections between special tokens that stand in trusted parts, and these tokens."""
    bounds, at = [], 0
    for part in parts:
        bounds.append((at, at + len(part.text), part.trusted))
        at += len(part.text)
    ids: list[int] = []
    begin, sound = 0, True
    for token, (low, high) in zip(encoding.ids, encoding.offsets, strict=True):
        content = special.get(token)
        if content is None:
            ids.append(token)
            continue
        # White space around it may be part of its place (lstrip, rstrip).
        found = whole.find(content, low, high)
        first = low if found < 0 else found
        last = high if found < 0 else found + len(content)
        if any(trusted and start <= first and last <= end for start, end, trusted in bounds):
            yield Span(ids, begin, low, sound)
            yield Span([token], low, high, True, True)
            ids, begin, sound = [], high, True
        else:
            ids.append(token)
            sound = False
    yield Span(ids, begin, len(whole), sound)
