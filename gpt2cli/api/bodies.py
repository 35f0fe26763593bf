"""The schemas of what requests send. Unknown fields are refused: one that is misspelt would do nothing."""

from __future__ import annotations

from typing import Any

from gpt2cli.api import limits

TEXT: dict[str, Any] = {"type": "string"}
TOKEN: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TOKENS: dict[str, Any] = {"type": "array", "items": TOKEN, "minItems": 1}


def maybe(kind: str, **limits: Any) -> dict[str, Any]:
    """A field that may be null, which is the same as leaving it out."""
    return {"type": [kind, "null"], **limits}


def body(fields: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _texts(most: int) -> dict[str, Any]:
    """A text, several, the token ids of one, or those of several."""
    return {
        "anyOf": [
            TEXT,
            {"type": "array", "items": TEXT, "minItems": 1, "maxItems": most},
            TOKENS,
            {"type": "array", "items": TOKENS, "minItems": 1, "maxItems": most},
        ]
    }


_BIASES = {
    "type": ["object", "null"],
    "propertyNames": {"pattern": "[0-9]{1,9}"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "maxProperties": limits.MAX_BIASES,
}
_STOP = {"type": "string", "minLength": 1, "maxLength": limits.MAX_STOP_LENGTH}
_SHARED: dict[str, Any] = {
    "model": maybe("string", description="One of /v1/models; the first without it."),
    "stream": maybe("boolean"),
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": maybe("boolean"), "include_obfuscation": maybe("boolean")},
        "additionalProperties": False,
    },
    "n": maybe("integer", minimum=1, maximum=limits.MAX_N),
    "seed": maybe(
        "integer",
        minimum=-(2**63),
        maximum=2**64 - 1,
        description="Taken modulo 2**32; text i of a prompt has the seed plus i.",
    ),
    "stop": {
        "anyOf": [{"type": "null"}, _STOP, {"type": "array", "items": _STOP, "maxItems": limits.MAX_STOPS}]
    },
    "temperature": maybe("number", minimum=0, maximum=100),
    "top_p": maybe("number", exclusiveMinimum=0, maximum=1),
    "top_k": maybe("integer", minimum=-1, description="0 and -1 turn it off."),
    "min_p": maybe("number", minimum=0, maximum=1),
    "typical_p": maybe("number", exclusiveMinimum=0, maximum=1),
    "repetition_penalty": maybe("number", minimum=0.01, maximum=100),
    "no_repeat_ngram_size": maybe("integer", minimum=0),
    "presence_penalty": maybe("number", minimum=-2, maximum=2),
    "frequency_penalty": maybe("number", minimum=-2, maximum=2),
    "logit_bias": _BIASES,
    "ignore_eos": maybe("boolean"),
    "max_sentences": maybe("integer", minimum=1, description="The text ends after so many sentences."),
    "return_token_ids": maybe("boolean"),
    "user": maybe("string", description="Not used."),
}
_LENGTH = maybe("integer", minimum=0, maximum=2**31 - 1)

COMPLETION = body(
    {
        **_SHARED,
        "prompt": {"anyOf": [{"type": "null"}, *_texts(limits.MAX_PROMPTS)["anyOf"]]},
        "suffix": maybe("string", description="Refused: GPT-2 continues texts and does not fill gaps."),
        "max_tokens": _LENGTH,
        "best_of": maybe("integer", minimum=1, maximum=limits.MAX_N),
        "echo": maybe("boolean"),
        "logprobs": maybe("integer", minimum=0, maximum=limits.MAX_LOGPROBS),
    }
)

_PART = body({"type": {"type": "string", "enum": ["text"]}, "text": TEXT}, ("type", "text"))
_MESSAGE = body(
    {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [TEXT, {"type": "array", "items": _PART, "maxItems": limits.MAX_MESSAGES}]},
        "name": maybe("string"),
        "refusal": {"type": "null"},
    },
    ("role", "content"),
)
_REFUSED = {"tools": "tools", "functions": "functions", "audio": "sounds", "prediction": "predictions"}
"""Fields of chat requests that would change the answer and cannot be met, and what they ask for."""
CHAT_REFUSED = tuple(_REFUSED)
CHAT = body(
    {
        **_SHARED,
        "messages": {
            "type": "array",
            "items": _MESSAGE,
            "minItems": 1,
            "maxItems": limits.MAX_MESSAGES,
        },
        "max_tokens": _LENGTH,
        "max_completion_tokens": _LENGTH,
        "logprobs": maybe("boolean"),
        "top_logprobs": maybe("integer", minimum=0, maximum=limits.MAX_TOP_LOGPROBS),
        "response_format": {"type": ["object", "null"], "description": "Only text."},
        **{name: {"description": f"Refused: there are no {what}."} for name, what in _REFUSED.items()},
        "store": maybe("boolean", description="Not used."),
        "metadata": maybe("object", description="Not used."),
        "service_tier": maybe("string", description="Not used."),
    },
    ("messages",),
)

EMBEDDINGS = body(
    {
        "model": _SHARED["model"],
        "input": _texts(limits.MAX_INPUTS),
        "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": maybe("integer", minimum=1, description="Only as many as the model has."),
        "user": _SHARED["user"],
    },
    ("input",),
)
TOKENIZE = body(
    {
        "model": _SHARED["model"],
        "prompt": TEXT,
        "add_special_tokens": maybe(
            "boolean",
            description="Whether the tokens are there that a tokenizer puts around a text, as Llama's bos; "
            "true by default. GPT-2 has none.",
        ),
        "return_token_strs": maybe("boolean"),
    },
    ("prompt",),
)
DETOKENIZE = body({"model": _SHARED["model"], "tokens": {"type": "array", "items": TOKEN}}, ("tokens",))
