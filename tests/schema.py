"""The shape of what ``--json`` and ``--jsonl`` print, as JSON schema; no field may be missing or unknown."""

from __future__ import annotations

from typing import Any


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_text, _whole, _number, _switch = ({"type": name} for name in ("string", "integer", "number", "boolean"))
_seed = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_seconds = {"type": "number", "minimum": 0}
_count = {"type": "integer", "minimum": 0}
_maybe_count = {"type": ["integer", "null"], "minimum": 0}
_rng = {"enum": ["default", "transformers"]}

OPTIONS = _object(
    temperature=_number,
    top_k=_count,
    top_p=_number,
    min_p=_number,
    typical_p=_number,
    repetition_penalty=_number,
    no_repeat_ngram_size=_count,
    max_new_tokens=_maybe_count,
    max_length=_maybe_count,
    num_return_sequences=_count,
    max_sentences=_maybe_count,
    stop={"type": "array", "items": _text},
    ignore_eos=_switch,
    special_tokens=_switch,
    overflow={"enum": ["error", "truncate", "slide"]},
    logprobs=_maybe_count,
    draft=_text,
    presence_penalty=_number,
    frequency_penalty=_number,
    logit_bias={"type": "array", "items": {"type": "array", "prefixItems": [_count, _number]}},
)
_top = _object(token_id=_count, token=_text, logprob={"type": ["number", "null"], "maximum": 0})
_logprobs = {"token": _text, "logprob": {"type": ["number", "null"], "maximum": 0}}
TOKEN_LOGPROBS = _object(token_id=_count, **_logprobs, top_logprobs={"type": "array", "items": _top})
FINISH = {"enum": ["stop", "length", "eos", "context", "interrupted"]}
CHOICE = _object(
    index=_count,
    seed=_seed,
    text=_text,
    token_ids={"type": "array", "items": _count},
    logprobs={"anyOf": [{"type": "null"}, {"type": "array", "items": TOKEN_LOGPROBS}]},
    finish_reason=FINISH,
)
USAGE = _object(prompt_tokens=_count, completion_tokens=_count, dropped_tokens=_count)
SPECULATION = _object(steps=_count, drafted=_count, accepted=_count)
TIMINGS = _object(
    import_s=_seconds,
    load_s=_seconds,
    prefill_s=_seconds,
    first_token_s=_seconds,
    decode_s=_seconds,
    tokens_per_s={"type": ["number", "null"], "minimum": 0},
)
ENGINE = _object(
    device=_text,
    precision=_text,
    kernels={"type": "array", "items": _text},
    threads=_count,
    cache={"enum": ["keys-values", "recurrent", "none"]},
)
_head = {
    "model": _text,
    "revision": {"type": ["string", "null"]},
    "prompt": _text,
    "seed": _seed,
    "rng": _rng,
    "options": OPTIONS,
}
_tail = {"usage": USAGE, "speculation": SPECULATION, "timings": TIMINGS, "engine": ENGINE}

DOCUMENT = _object(**_head, choices={"type": "array", "items": CHOICE, "minItems": 1}, **_tail)

_token = {"index": _count, "token_id": _count, "text": _text}
_drafted = {"drafted": {"const": True}}
EVENTS = {
    "start": _object(event={"const": "start"}, **_head, engine=ENGINE),
    "token": {
        "anyOf": [
            _object(event={"const": "token"}, **_token, **drafted, **logprobs)
            for drafted in ({}, _drafted)
            for logprobs in ({}, {**_logprobs, "top_logprobs": {"type": "array", "items": _top}})
        ]
    },
    "end": _object(event={"const": "end"}, index=_count, seed=_seed, text=_text, finish_reason=FINISH),
    "summary": _object(event={"const": "summary"}, **_tail),
}
