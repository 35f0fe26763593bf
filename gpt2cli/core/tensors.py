"""The tensors of a checkpoint as numpy arrays: views on a memory mapping, without torch for safetensors.

numpy has no bf16, so that such a tensor is an array of uint16, its bits, with ``BF16`` beside it.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from gpt2cli.adapter import Adapter
from gpt2cli.checkpoint import Checkpoint
from gpt2cli.core.adapters import merged
from gpt2cli.core.arrays import TYPES, Array, Floats, as_float32, is_finite
from gpt2cli.errors import ModelFileError
from gpt2cli.safetensors_header import TensorInfo


class Tensors:
    """The tensors of one checkpoint, under the names that it lists them by, as its adapter changes them.

    What `read` returns stays valid as long as it is referred to, also after `close`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._directory = checkpoint, checkpoint.directory
        self._infos, self._adapter = checkpoint.tensors, checkpoint.adapter
        self._maps: dict[Path, mmap.mmap] = {}
        self._unpickled = _unpickle(checkpoint) if checkpoint.pickles else {}
        self._merged: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._infos or name in self._unpickled or self.is_adapted(name)

    def is_adapted(self, name: str) -> bool:
        """Whether an adapter changes the tensor."""
        return self._adapter is not None and self._adapter.touches(name)

    def info(self, name: str) -> TensorInfo | None:
        """Where the tensor lies; None for one of a pickle or an adapter, which is in memory only.

        Raises `KeyError`.
        """
        return None if name in self._unpickled or self.is_adapted(name) else self._infos[name]

    def dtype(self, name: str) -> str:
        """The type that `read` gives the tensor. Raises `KeyError`."""
        if self.is_adapted(name):
            return "F32"
        own = self._own_name(name)
        return self._unpickled[own][1] if own in self._unpickled else self._infos[own].dtype

    def _own_name(self, name: str) -> str:
        """The checkpoint's name of a tensor: a tied head is the embeddings, without what an adapter adds."""
        present = name in self._infos or name in self._unpickled
        tied = self._adapter is not None and name == "lm_head.weight" and not present
        return "wte.weight" if tied else name

    def read(self, name: str) -> tuple[Array, str]:
        """The tensor as it is stored, and its type: ``F32``, ``F16``, or ``BF16``, whose array is uint16.

        It is a view on the file, unless an adapter changes it, or the file has it where no processor may read
        such numbers. Nobody may write to it. Raises `KeyError`, and `ModelFileError` for a file that cannot
        be mapped or was cut short, or an adapter that is damaged.
        """
        if self._adapter is not None and self.is_adapted(name):
            if name not in self._merged:
                self._merged[name] = self._merge(self._adapter, name)
            return self._merged[name], "F32"
        return self._stored(self._own_name(name))

    def _merge(self, adapter: Adapter, name: str) -> Floats:
        stored = as_float32(*self._stored(self._own_name(name)))
        whole = merged(adapter, name, stored)
        if is_finite(stored, "F32") and not is_finite(whole, "F32"):
            raise ModelFileError(f"{adapter.directory}: {name} is too large with it: infinity, or NaN")
        return whole

    def _stored(self, name: str) -> tuple[Array, str]:
        """The checkpoint's own tensor. Raises as `read` does."""
        if name in self._unpickled:
            return self._unpickled[name]
        info = self._infos[name]
        dtype = np.dtype(TYPES[info.dtype])
        if info.size == 0:
            return np.empty(info.shape, dtype), info.dtype
        mapping = self._map(info.file)
        if info.offset + info.size > len(mapping):
            raise ModelFileError(f"{info.file}: the file was cut short")
        count = info.size // dtype.itemsize
        flat = np.frombuffer(mapping, dtype, count=count, offset=info.offset)
        return np.require(flat, requirements="A").reshape(info.shape), info.dtype

    def read_finite(self, name: str) -> tuple[Array, str]:
        """`read`. Raises `ModelFileError`, naming the tensor, where it contains NaN or infinity."""
        array, dtype = self.read(name)
        if not is_finite(array, dtype):
            raise ModelFileError(f"{self._directory}: {name} contains NaN or infinity")
        return array, dtype

    def drop(self, name: str) -> None:
        """Let go of the tensor's pages; they are read again from the file should it be used."""
        info = self._infos.get(name)
        if info is None or info.file not in self._maps or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, first, length)

    def forget(self, name: str) -> None:
        """Let go of a tensor that an adapter changes; it is made again should it be used."""
        self._merged.pop(name, None)

    def head_name(self) -> str:
        """The name of GPT-2's output head's matrix: ``lm_head.weight``, or ``wte.weight`` where it is tied.

        As in transformers a head that differs from the embeddings is used, whatever the config says. An
        adapter of the embeddings leaves a tied head as it was, as peft does: the head is then one of its own.
        """
        if self.is_adapted("wte.weight") or self.is_adapted("lm_head.weight"):
            return "lm_head.weight"
        if "lm_head.weight" not in self:
            return "wte.weight"
        tied = self._checkpoint.gpt2.tie_word_embeddings
        return "wte.weight" if tied and self._same("lm_head.weight", "wte.weight") else "lm_head.weight"

    def close(self) -> None:
        """Let go of the files; calling it again does nothing."""
        # What still refers to a mapping keeps it; the last reference unmaps it.
        self._maps.clear()
        self._unpickled, self._merged = {}, {}

    def _same(self, one: str, other: str) -> bool:
        (a, kind), (b, other_kind) = self.read(one), self.read(other)
        if kind == other_kind:
            return np.array_equal(a, b)
        return np.array_equal(as_float32(a, kind), as_float32(b, other_kind))

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    # A private mapping: nothing is written, and torch takes it for writable.
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{path}: {error}") from None
        return self._maps[path]


def open_tensors(checkpoint: Checkpoint) -> Tensors:
    """The tensors of ``checkpoint``. Raises `ModelFileError` for a pickle that is damaged or refused."""
    return Tensors(checkpoint)


def _unpickle(checkpoint: Checkpoint) -> dict[str, tuple[Array, str]]:
    """Torch is imported for this, and for nothing else here."""
    import torch

    from gpt2cli.core.pickles import read_pickles

    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    found: dict[str, tuple[Array, str]] = {}
    for name, tensor in read_pickles(checkpoint).items():
        raw = tensor.contiguous()
        raw = raw.view(torch.int16) if raw.dtype == torch.bfloat16 else raw
        kind = kinds[tensor.dtype]
        found[name] = raw.numpy().view(TYPES[kind]), kind
    return found
