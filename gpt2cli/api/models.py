"""The models that a server was started with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt2cli.api.errors import ApiError
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.engine import Engine
from gpt2cli.errors import ModelFileError
from gpt2cli.options import LoadOptions
from gpt2cli.repl.formats import Format, Transcript, choose_format


@dataclass
class Served:
    """One model: its files are in order, and ``engine`` is there once it is loaded."""

    name: str
    checkpoint: Checkpoint
    load: LoadOptions
    created: int = field(default_factory=lambda: int(time.time()))
    engine: Engine | None = None
    budget: int = 0
    """Tokens whose keys and values there is memory for, once it is loaded."""

    def __post_init__(self) -> None:
        self.format: Format = chat_format(self.checkpoint, self.name)
        self.problem = ""
        """Why its own template is not used; empty where it is, or has none."""
        try:
            # What is wrong with a template shows when it is rendered.
            self.format.layout("", [], "x")
        except ModelFileError as error:
            self.format, self.problem = Transcript(), f"{error}; a chat is a transcript"

    @property
    def ready(self) -> Engine:
        """The engine. Raises `ApiError` while it is being loaded."""
        if self.engine is None:
            raise ApiError(503, f"{self.name} is being loaded", headers={"retry-after": "1"})
        return self.engine

    def document(self) -> dict[str, object]:
        """What `/v1/models` says of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gpt2cli",
            "max_model_len": self.checkpoint.config.n_positions,
            "chat_format": self.format.name,
            "embedding_dimensions": self.checkpoint.config.n_embd,
        }


def chat_format(checkpoint: Checkpoint, name: str) -> Format:
    """How messages become one text: the model's own template, what suits DialoGPT, else a transcript.

    Raises `ModelFileError` for a damaged template.
    """
    found = choose_format(checkpoint, None, name)
    return Transcript() if found.name == "story" else found


def choose(models: Sequence[Served], name: str | None) -> Served:
    """The model that a request names; the first where it names none. Raises `ApiError`."""
    if name is None:
        return models[0]
    for model in models:
        if model.name == name:
            return model
    raise ApiError(
        404,
        f"there is no model {name[:100]!r} here; there is {', '.join(model.name for model in models)}",
        param="model",
        code="model_not_found",
    )
