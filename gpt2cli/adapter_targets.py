"""Which tensors of a base an adapter may change: their names, shapes, and how their matrices lie."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from gpt2cli.adapter import Layout, Target

Shape = tuple[int, ...]

_EMBEDDINGS = re.compile(
    r"(.*\.)?(embed_tokens|embed_positions|embed_in|tokens_embed|positions_embed|word_embeddings|embeddings|wte|wpe)"
    r"\.weight"
)
"""What the families of `gpt2cli.families` call their embeddings."""
_CONV1D = ("openai-gpt",)
"""Families beside GPT-2 whose layers hold their matrices as [in, out]."""
_LAYER = re.compile(r"(transformer\.)?h\.")


def gpt2_targets(shapes: Mapping[str, Shape]) -> dict[str, Target]:
    """The targets of a GPT-2, by canonical names."""
    return {name: Target(shape, _gpt2_layout(name, shape)) for name, shape in shapes.items()}


def family_targets(architecture: str, shapes: Mapping[str, Shape]) -> dict[str, Target]:
    """The targets of a model of another ``architecture``, by the names of its files.

    Embeddings that are called otherwise than those of the tested families are taken for a layer's matrix; an
    adapter of them then does not fit, and is refused.
    """
    return {name: Target(shape, _family_layout(architecture, name, shape)) for name, shape in shapes.items()}


def name_in_files(key: str, names: Container[str]) -> str:
    """The name among ``names`` of a tensor that an adapter calls ``key``, which has the model's class before
    it where files leave that out, and the other way round; ``key`` itself where there is none."""
    _, _, shorter = key.partition(".")
    found = (name for name in (key, shorter, f"transformer.{key}", f"model.{key}") if name in names)
    return next(found, key)


def _gpt2_layout(name: str, shape: Shape) -> Layout | None:
    if len(shape) != 2:
        return None
    return "conv1d" if name.startswith("h.") else "linear" if name == "lm_head.weight" else "embedding"


def _family_layout(architecture: str, name: str, shape: Shape) -> Layout | None:
    if len(shape) != 2:
        return None
    if _EMBEDDINGS.fullmatch(name):
        return "embedding"
    return "conv1d" if architecture in _CONV1D and _LAYER.match(name) else "linear"
