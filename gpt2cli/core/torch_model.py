"""A model in torch whose stages can be looked at: what `analysis` asks of one, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2cli.core.backend import Batch
from gpt2cli.families import CausalConfig

Observer = Callable[[str, Tensor], None]
"""Called with the name of a stage and its tensor, in the order of the computation."""


class TorchSlots(Protocol):
    """What texts have left behind in a model, by the numbers of slots."""

    def new(self) -> int:
        """An empty slot."""
        ...

    def free(self, slot: int) -> None:
        """The slot is not needed any more."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        ...


class TorchModel(Protocol):
    """GPT-2's reference (`TorchGPT2`), or a model of transformers (`TransformersModel`)."""

    @property
    def config(self) -> CausalConfig:
        """What is known of the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def new_slots(self) -> TorchSlots:
        """Slots for this model, none of them taken."""
        ...

    def hidden_states(
        self,
        batch: Batch,
        slots: Any = None,
        *,
        observe: Observer | None = None,
        attention: Collection[int] = (),
    ) -> Tensor:
        """The final hidden states [N, D] of all tokens of ``batch``; they are what `logits` takes.

        Keys and values join ``slots``, which are of `new_slots`. Without them every text of the batch must
        begin with its first token (`whole_texts`). ``observe`` is called with ``embeddings``,
        ``h.<layer>.output``, ``ln_f``, each [N, D]; for the layers in ``attention`` (from 0) also with
        ``h.<layer>.attn.weights`` [H, T, S], once for each text in the order of the batch.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, D] final hidden states -> [N, V] fp32"""
        ...


def whole_texts(rows: Sequence[Sequence[int]]) -> Batch:
    """The batch of texts that are read from their first token on, one slot each."""
    return Batch.of([(slot, 0, row) for slot, row in enumerate(rows)])
