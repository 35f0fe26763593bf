"""What computes logits: the flat batch that goes in, and the protocol that every backend keeps.

Nothing above `core` knows which backend runs. There are three: `core/native` (GPT-2 on a CPU, without torch),
`core/torch_gpt2.py` (GPT-2's readable reference, CUDA, mps, and any CPU without the library), and
`core/transformers_lm.py` (every other architecture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2cli.families import CausalConfig

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Cache = Literal["keys-values", "recurrent", "none"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass; nothing else ever goes into one.

    N tokens, one after the other. The tokens of one slot stand together, in ascending positions without a
    gap, and a slot holds everything before its first one. A position that the slot already holds is a
    rewind: what stood there and after it is gone.
    """

    tokens: Ints
    """[N] ids."""
    slots: Ints
    """[N] the slot whose keys and values each token attends to and joins."""
    positions: Ints
    """[N] the place of each token in its slot, from 0."""
    wanted: Ints
    """[M] ascending indices of the tokens after which logits are wanted."""

    @classmethod
    def of(
        cls, parts: Sequence[tuple[int, int, Sequence[int]]], wanted: Sequence[int] | None = None
    ) -> Batch:
        """From (slot, first position, ids) for each slot; logits after the last id of each, or after
        ``wanted``."""
        lengths = [len(ids) for _, _, ids in parts]
        ends = np.cumsum(lengths, dtype=np.int32)
        positions = [np.arange(at, at + len(ids), dtype=np.int32) for _, at, ids in parts]
        return cls(
            np.concatenate([np.asarray(ids, np.int32) for _, _, ids in parts]),
            np.repeat(np.asarray([slot for slot, _, _ in parts], np.int32), lengths),
            np.concatenate(positions),
            ends - 1 if wanted is None else np.asarray(wanted, np.int32),
        )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs: as loaded, not as asked for."""

    device: str
    precision: str
    kernels: tuple[str, ...]
    threads: int
    cache: Cache = "keys-values"
    """What a slot holds. ``keys-values`` can be cut off anywhere and copied. A ``recurrent`` state can be
    copied where it stands; a rewind, and a copy of less, read the text again. With ``none`` the whole text is
    read for each token."""


class Backend(Protocol):
    """A loaded model that turns batches into logits, and keeps keys and values in slots.

    Slots are numbered by the backend; one holds up to ``config.n_positions`` tokens.
    """

    @property
    def config(self) -> CausalConfig:
        """What is known of the model."""
        ...

    @property
    def info(self) -> EngineInfo:
        """Device, precision, kernels and threads."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether logits are the same to the last bit however tokens are spread over batches."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in a slot."""
        ...

    def new_slot(self) -> int:
        """An empty slot."""
        ...

    def free_slot(self, slot: int) -> None:
        """The slot is not needed any more."""
        ...

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        ...

    def forward(self, batch: Batch) -> Floats:
        """The logits [M, V] after the wanted tokens; the caller may keep and change them.

        The keys and values of the batch join their slots. However tokens are spread over batches the result
        is the same: to the last bit where ``batch_invariant``, else up to rounding. Positions must be within
        ``config.n_positions``, and ids within the vocabulary: the caller has checked them.
        """
        ...

    def close(self) -> None:
        """Let go of weights, slots and threads; calling it again does nothing."""
        ...
