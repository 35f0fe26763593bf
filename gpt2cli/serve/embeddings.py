"""`/v1/embeddings`: the mean of a text's last hidden states, by the torch reference of the model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2cli.api.errors import ApiError
from gpt2cli.api.models import Served
from gpt2cli.api.reading import check_length, check_text, given
from gpt2cli.core.backend import Floats
from gpt2cli.core.engine import Engine
from gpt2cli.errors import ModelFileError, PromptTooLong


def read_inputs(body: Mapping[str, Any], model: Served) -> list[list[int]]:
    """The tokens of each text of a body that is as the schema says. Raises `ApiError`, `Gpt2cliError`."""
    engine, inputs = model.ready, body["input"]
    size, dimensions = engine.config.n_embd, body.get("dimensions")
    if dimensions not in (None, size):
        raise ApiError(400, f"dimensions: the model has {size}", param="dimensions")
    several = isinstance(inputs, list) and not isinstance(inputs[0], int)
    read = [_read(engine, each) for each in (inputs if several else [inputs])]
    for ids in read:
        if len(ids) > engine.config.n_positions:
            raise PromptTooLong(
                f"a text has {len(ids)} tokens; the model's context is {engine.config.n_positions}"
            )
        if max(ids) >= engine.config.vocab_size:
            raise ApiError(400, f"input: the vocabulary has {engine.config.vocab_size} tokens", param="input")
    return read


def _read(engine: Engine, text: str | list[int]) -> list[int]:
    if not isinstance(text, str):
        return text
    check_text(text, "input")
    check_length(engine, text)
    return engine.encode(text)


def embed(engine: Engine, ids: Sequence[int]) -> Floats:
    """The mean [D] of the final hidden states of all tokens. Raises `ModelFileError`.

    `Engine.model` reads the weights again when it is first asked for: let another thread ask before.
    """
    from gpt2cli.core.torch_model import whole_texts

    mean: Floats = engine.model.hidden_states(whole_texts([ids])).float().mean(dim=0).cpu().numpy()
    if not np.isfinite(mean).all():
        raise ModelFileError("the model computes NaN or infinity")
    return mean


def embeddings_document(
    body: Mapping[str, Any], model: Served, inputs: Sequence[Sequence[int]], vectors: Mapping[int, Floats]
) -> dict[str, Any]:
    """The answer."""
    packed = given(body, "encoding_format", "float") == "base64"
    count = sum(map(len, inputs))
    return {
        "object": "list",
        "model": model.name,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vectors[index]) if packed else vectors[index].tolist(),
            }
            for index in range(len(inputs))
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _packed(vector: Floats) -> str:
    """Little-endian fp32, as base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
