"""Hidden states and attention weights: the numbers of ``GPT2Model(**inputs)``.

Layers are counted as in transformers' ``hidden_states``: 0 is the embeddings, n the output of block n, but
the last comes after the final layer norm, and is ``last_hidden_state``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gpt2cli.analysis.batches import batch_size, gathered, run_by_length
from gpt2cli.core.torch_model import TorchModel, whole_texts
from gpt2cli.errors import PromptTooLong, UsageError

Pool = Literal["none", "mean", "last"]


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """What is taken out. ``layers`` are 0 … n_layer, see the module; ``attention`` blocks 1 … n_layer."""

    layers: tuple[int, ...]
    pool: Pool = "none"
    attention: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one text of T tokens, on the CPU."""

    tag: Any
    tokens: tuple[int, ...]
    layers: dict[int, Tensor]
    """The states by layer: [T, D] fp32, or [D] where they are pooled."""
    attention: dict[int, Tensor] = field(default_factory=dict)
    """The weights by block: [H, T, T] fp32; row t is how token t looks at the tokens up to itself."""


def parse_layers(text: str, n_layer: int, *, first: int = 0) -> tuple[int, ...]:
    """``all``, or numbers and ranges as in ``0,3-5,-1``, from ``first`` to ``n_layer``. Raises `UsageError`.

    Negative numbers count from the end: -1 is the last layer.
    """
    if text.strip() == "all":
        return tuple(range(first, n_layer + 1))
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        try:
            if dash and low:
                between = range(_layer(low, n_layer, first), _layer(high, n_layer, first) + 1)
                if not between:
                    raise ValueError("the range is empty")
                layers += between
            else:
                layers.append(_layer(part, n_layer, first))
        except ValueError:
            raise UsageError(
                f"{part.strip()[:40]!r} is no layer of this model",
                hint=f"layers: {first} to {n_layer}, -1 for the last, 2-4, all",
            ) from None
    return tuple(dict.fromkeys(layers))


def _layer(text: str, n_layer: int, first: int) -> int:
    number = int(text)
    number = n_layer + 1 + number if number < 0 else number
    if not first <= number <= n_layer:
        raise ValueError(text)
    return number


@torch.inference_mode()
def extract_batch(
    model: TorchModel, tags: Sequence[Any], rows: Sequence[Sequence[int]], options: FeatureOptions
) -> list[Features]:
    """The features of texts of any length, at least one token each, in one batch. Raises `PromptTooLong`."""
    counts = [len(row) for row in rows]
    if max(counts) > model.config.n_positions:
        raise PromptTooLong(
            f"the text has {max(counts)} tokens; the model's context is {model.config.n_positions}",
            hint="shorten it, or keep its end with --truncate",
        )
    names = {_stage(layer, model.config.n_layer): layer for layer in options.layers}
    blocks = {f"h.{block - 1}.attn.weights": block for block in options.attention}
    found: dict[int, list[Tensor]] = {}
    weights: dict[int, list[Tensor]] = {block: [] for block in options.attention}

    def observe(stage: str, tensor: Tensor) -> None:
        # Pooled at once: the states of all layers are never held together.
        if stage in names:
            found[names[stage]] = [_pooled(states, options.pool) for states in torch.split(tensor, counts)]
        if stage in blocks:
            weights[blocks[stage]].append(_whole(tensor))

    model.hidden_states(
        whole_texts(rows), observe=observe, attention=[block - 1 for block in options.attention]
    )
    return [
        Features(
            tag,
            tuple(rows[n]),
            {layer: found[layer][n] for layer in options.layers},
            {block: weights[block][n] for block in options.attention},
        )
        for n, tag in enumerate(tags)
    ]


def _stage(layer: int, n_layer: int) -> str:
    if layer == n_layer:
        return "ln_f"
    return "embeddings" if layer == 0 else f"h.{layer - 1}.output"


def _pooled(states: Tensor, pool: Pool) -> Tensor:
    """states: [T, D] -> [T, D] or [D], a copy on the CPU."""
    if pool == "mean":
        states = states.cpu().double().mean(dim=0)
    elif pool == "last":
        states = states[-1]
    return _whole(states)


def _whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU: safetensors writes a view of a larger tensor wrongly."""
    return tensor.to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def extract(
    model: TorchModel,
    texts: Iterable[tuple[Any, Sequence[int]]],
    options: FeatureOptions,
    *,
    batch_tokens: int | None = None,
) -> Iterator[Features]:
    """The features of tagged texts, in their order, some at once. Raises `PromptTooLong`."""
    tokens = batch_size(model, batch_tokens)

    def run(batch: list[tuple[Any, Sequence[int]]]) -> list[Features]:
        tags, rows = zip(*batch, strict=True)
        return extract_batch(model, tags, rows, options)

    def length(text: tuple[Any, Sequence[int]]) -> int:
        return len(text[1])

    for group in gathered(texts, length, tokens):
        yield from run_by_length(group, length, tokens, run)


def arrays(found: Sequence[Features], options: FeatureOptions) -> dict[str, Any]:
    """Many texts as numpy arrays, by name, for one file.

    ``layer.N``: [texts, D] where they are pooled; else [all tokens, D], the texts one after the other, and
    ``offsets``: [texts + 1] says where each begins. ``token_ids``: [all tokens]. ``attention.N.T`` is that of
    block N in text T, [H, T, T].
    """
    import numpy as np

    lengths = [len(features.tokens) for features in found]
    result: dict[str, Any] = {
        "token_ids": np.array([token for features in found for token in features.tokens], np.int64),
        "offsets": np.array([0, *np.cumsum(lengths)], np.int64),
    }
    for layer in options.layers:
        parts = [features.layers[layer].numpy() for features in found]
        result[f"layer.{layer}"] = np.stack(parts) if options.pool != "none" else np.concatenate(parts)
    for block in options.attention:
        for number, features in enumerate(found):
            result[f"attention.{block}.{number}"] = features.attention[block].numpy()
    return result
