"""The backend of every architecture but GPT-2: a `TransformersModel` behind `core/backend.py`'s protocol."""

from __future__ import annotations

import torch

from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.backend import Batch, Floats
from gpt2cli.core.torch_gpt2 import choose_device, spans_of
from gpt2cli.core.transformers_load import TYPES, Kind, load_causal_model
from gpt2cli.core.transformers_model import TransformersModel
from gpt2cli.families import FamilyConfig
from gpt2cli.options import Device


class TransformersBackend:
    """`core/backend.py`'s protocol over a `TransformersModel`."""

    batch_invariant = False

    def __init__(self, model: TransformersModel) -> None:
        self.config, self.info = model.config, model.info
        self._model: TransformersModel | None = model
        self._slots = model.new_slots()

    @property
    def model(self) -> TransformersModel:
        """The model, for what looks inside."""
        if self._model is None:
            raise ValueError("the backend is closed")
        return self._model

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in a slot, about: its keys and values in all layers; 0 where it has none."""
        config = self.config
        if self.info.cache != "keys-values":
            return 0
        width = config.n_kv_head * config.kv_head_dim
        return 2 * config.n_layer * width * TYPES[self.model.precision].itemsize

    def new_slot(self) -> int:
        """An empty slot."""
        return self._slots.new()

    def free_slot(self, slot: int) -> None:
        """The slot is not needed any more."""
        self._slots.free(slot)

    def copy_slot(self, source: int, target: int, tokens: int) -> None:
        """Put the first ``tokens`` tokens of ``source`` into ``target``."""
        self._slots.copy(source, target, tokens)

    def forward(self, batch: Batch) -> Floats:
        """The logits [M, V] after the wanted tokens; see `Backend.forward`."""
        wanted, parts = batch.wanted.tolist(), []
        for span in spans_of(batch):
            for n, slot in enumerate(span.slots):
                begin = span.begin + n * span.tokens
                end = begin + span.tokens
                ids = batch.tokens[begin:end].tolist()
                rows = [place - begin for place in wanted if begin <= place < end]
                parts.append(self.model.read(self._slots[slot], span.present, ids, rows))
        found: Floats = torch.cat(parts).cpu().numpy()
        return found

    def close(self) -> None:
        """Let go of weights and slots; calling it again does nothing."""
        if self._model is not None:
            self._slots, self._model = self._model.new_slots(), None


def open_backend(
    checkpoint: Checkpoint,
    precision: Kind,
    device: Device = "cpu",
    threads: int | None = None,
) -> TransformersBackend:
    """Load a model.

    ``threads`` are those that torch computes with on a CPU, for the whole process. Raises `ModelFileError`,
    and `UsageError` for a device that is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config, place = checkpoint.config, choose_device(device)
    assert isinstance(config, FamilyConfig)
    model = TransformersModel(load_causal_model(checkpoint, precision, place), config, precision, place)
    if not config.tested:
        model.check()
    return TransformersBackend(model)
