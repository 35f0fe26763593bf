"""What a token of a tokenizer that is not GPT-2's kind stands for in the middle of a text, in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_KNOWN = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder", "WordPiece"}
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def reader_of(decoder: Any) -> Callable[[str], bytes] | None:
    """What gives a token its bytes as the library's ``decoder`` writes it between two others.

    The space that sentencepiece's ``▁`` and the end of a word ``</w>`` stand for is a byte of the token.
    None for a decoder that has no such rule.
    """
    state = {"type": "WordPiece", "prefix": ""} if decoder is None else json.loads(decoder.__getstate__())
    steps = _steps(state)
    if any(step["type"] not in _KNOWN or "Regex" in step.get("pattern", ()) for step in steps):
        return None

    def read(token: str) -> bytes:
        for step in steps:
            kind = step["type"]
            if kind == "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            elif kind == "Metaspace":
                token = token.replace(step["replacement"], " ")
            elif kind == "BPEDecoder":
                token = token.replace(step["suffix"], " ")
            elif kind == "WordPiece":
                prefix = step["prefix"]
                token = token[len(prefix) :] if prefix and token.startswith(prefix) else " " + token
            elif kind == "ByteFallback" and (byte := BYTE_TOKEN.fullmatch(token)):
                return bytes([int(byte[1], 16)])
        return token.encode("utf-8", "replace")

    return read


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    """A decoder's parts in order, those of sequences too."""
    if state["type"] == "Sequence":
        return [step for part in state["decoders"] for step in _steps(part)]
    return [state]
