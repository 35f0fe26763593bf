"""The OpenAPI document of the server, made of the schemas that it checks requests by."""

from __future__ import annotations

from typing import Any

from gpt2cli.api import bodies

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_ANSWER = {"description": "The answer.", "content": {"application/json": {"schema": {"type": "object"}}}}
_STREAMED = {
    "description": "The answer; with stream as server-sent events.",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}
_TEXT = {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_REFUSED = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def _post(summary: str, schema: dict[str, Any], *, streams: bool = False) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": _STREAMED if streams else _ANSWER, "default": _REFUSED},
        }
    }


def _get(summary: str, answer: dict[str, Any] = _ANSWER, *names: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": answer, "default": _REFUSED}}
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return {"get": operation}


def document(version: str) -> dict[str, Any]:
    """What `/openapi.json` answers."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2cli", "version": version, "description": "OpenAI's API over GPT-2."},
        "paths": {
            "/v1/completions": _post("Continue texts.", bodies.COMPLETION, streams=True),
            "/v1/chat/completions": _post("Answer in a conversation.", bodies.CHAT, streams=True),
            "/v1/embeddings": _post("The mean of the last hidden states.", bodies.EMBEDDINGS),
            "/v1/models": _get("The models."),
            "/v1/models/{model}": _get("One model.", _ANSWER, "model"),
            "/tokenize": _post("The tokens of a text.", bodies.TOKENIZE),
            "/detokenize": _post("The text of tokens.", bodies.DETOKENIZE),
            "/health": _get("Whether requests are taken."),
            "/metrics": _get("What was done, for Prometheus.", _TEXT),
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
