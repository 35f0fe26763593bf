"""A LoRA adapter in peft's format, read and checked without torch.

::

    DIR/
      adapter_config.json          rank, scaling, and which modules of the base are changed
      adapter_model.safetensors    for each: base_model.model.<module>.lora_A.weight, .lora_B.weight

The update of a matrix W is scaling · B A with A [r, in] and B [out, r] (Hu et al. 2021, arXiv 2106.09685);
scaling is alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732). DoRA (Liu et al.
2024, arXiv 2402.09353) scales each output's weights to a length that it has learned. `gpt2cli.core.adapters`
computes this.

Nothing here trusts a file, as in `gpt2cli.checkpoint`: what an adapter asks for and is not done here is
refused, and never left out.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpt2cli.adapter_config import AdapterConfig, read_adapter_config
from gpt2cli.errors import ModelFileError, ModelNotFound
from gpt2cli.model_files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from gpt2cli.options import shown
from gpt2cli.safetensors_header import TensorInfo, read_header
from gpt2cli.untrusted import open_file

PREFIX = "base_model.model."
"""Stands before the base's own names in an adapter's keys."""

Layout = Literal["linear", "conv1d", "embedding"]
"""How a matrix lies in its checkpoint: ``linear`` [out, in]; ``conv1d`` and ``embedding`` [in, out]."""

_TYPES = ("F32", "F16", "BF16")
_A, _B, _MAGNITUDE = "A", "B", "magnitude"
_EMBEDDING = "embedding "
_PARTS = {
    ".lora_A.weight": _A,
    ".lora_B.weight": _B,
    ".lora_embedding_A": _EMBEDDING + _A,
    ".lora_embedding_B": _EMBEDDING + _B,
    ".lora_magnitude_vector": _MAGNITUDE,
    ".lora_magnitude_vector.weight": _MAGNITUDE,
}
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the base that an adapter may change; ``layout`` is None for what is no matrix."""

    shape: tuple[int, ...]
    layout: Layout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The update of one matrix: ``a`` [r, in], ``b`` [out, r], and for DoRA the ``magnitude`` [out].

    ``layout`` is the base matrix's.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    magnitude: TensorInfo | None
    embedding: bool
    scaling: float
    layout: Layout = "linear"

    @property
    def rank(self) -> int:
        """The inner dimension of the product."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter. ``updates`` and ``replaced`` are keyed by the base's names of tensors.

    What is in ``replaced`` takes the place of the base's tensor, before an update of it.
    """

    directory: Path
    config: AdapterConfig
    updates: Mapping[str, LowRank]
    replaced: Mapping[str, TensorInfo]

    @property
    def files(self) -> tuple[Path, Path]:
        """What it consists of."""
        return self.directory / ADAPTER_CONFIG, self.directory / ADAPTER_WEIGHTS

    @property
    def ranks(self) -> str:
        """The rank of its updates, as in ``8`` or ``4 to 16``; empty where it has none."""
        ranks = {update.rank for update in self.updates.values()}
        return " to ".join(str(rank) for rank in sorted({min(ranks), max(ranks)})) if ranks else ""

    @property
    def modules(self) -> tuple[str, ...]:
        """The last part of the names of what it changes, each once: ``attn.c_attn`` and the like."""
        names = sorted({*self.updates, *self.replaced})
        return tuple(dict.fromkeys(re.sub(r"^(?:.*\.)?\d+\.", "", _module(name)) for name in names))

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its tensors, each once."""
        return tuple(sorted({info.dtype for info in self._infos()}))

    def _infos(self) -> Iterator[TensorInfo]:
        for update in self.updates.values():
            yield from (info for info in (update.a, update.b, update.magnitude) if info is not None)
        yield from self.replaced.values()

    def touches(self, name: str) -> bool:
        """Whether the adapter changes the base's tensor of that name."""
        return name in self.updates or name in self.replaced

    @property
    def parameters(self) -> int:
        """The number of weights that the adapter has."""
        return sum(math.prod(info.shape) for info in self._infos())

    def fitted(self, targets: Mapping[str, Target]) -> Adapter:
        """The adapter for a base that has ``targets`` and no others.

        Raises `ModelFileError` where it changes what the base does not have in that shape, or lacks a module
        that its config names.
        """
        for name, info in self.replaced.items():
            target = self._target(targets, name)
            if info.shape != target.shape:
                raise self._misfit(name, f"has shape {list(info.shape)}, the model's {list(target.shape)}")
        updates = {name: self._fit(update, name, targets) for name, update in self.updates.items()}
        self._check_complete(targets)
        return replace(self, updates=updates)

    def _fit(self, update: LowRank, name: str, targets: Mapping[str, Target]) -> LowRank:
        target = self._target(targets, name)
        if target.layout is None or update.embedding != (target.layout == "embedding"):
            raise self._misfit(name, "is updated as another kind of tensor than the model's")
        inputs, outputs = target.shape[::-1] if target.layout == "linear" else target.shape
        found, wanted = (update.a.shape[1], update.b.shape[0]), (inputs, outputs)
        if found != wanted:
            raise self._misfit(
                name,
                f"is updated as a matrix of {found[0]} inputs and {found[1]} outputs, the model's has "
                f"{inputs} and {outputs}",
            )
        return replace(update, layout=target.layout)

    def _target(self, targets: Mapping[str, Target], name: str) -> Target:
        if name not in targets:
            raise self._misfit(name, "is changed, and the model does not have it")
        return targets[name]

    def _misfit(self, name: str, problem: str) -> ModelFileError:
        base = self.config.base
        hint = f"it was made for {shown(base)}" if base else "an adapter fits the model that it was made for"
        return ModelFileError(f"{self.directory}: {shown(name)} {problem}", hint=hint)

    def _check_complete(self, targets: Mapping[str, Target]) -> None:
        """Every matrix that the config names has its update, and no other; what was saved is there."""
        for name, target in targets.items():
            if name not in self.replaced and _is_saved(self.config, name, self.updates):
                raise ModelFileError(f"{self.directory}: {name}, which was saved whole, is missing")
            named = target.layout is not None and self.config.names(name.removesuffix(".weight"))
            if named and name not in self.updates and not self.config.selects_layers:
                raise ModelFileError(f"{self.directory}: the update of {name} is missing")
        for name, update in self.updates.items():
            if self.config.names(update.module) is False:
                raise ModelFileError(
                    f"{self.directory}: {shown(name)} is updated, and its config does not name it"
                )


def open_adapter(directory: Path, canonical: Callable[[str], str] = lambda name: name) -> Adapter:
    """Read and check the adapter in ``directory``; that it fits its base, `Adapter.fitted` checks.

    ``canonical`` gives the name under which the base's checkpoint lists a tensor. Raises `ModelNotFound`
    where there is no adapter, `ModelFileError` where one is damaged or asks for what is not done here.
    """
    check_is_adapter(directory)
    config = read_adapter_config(directory / ADAPTER_CONFIG)
    path = directory / ADAPTER_WEIGHTS
    parts: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for key, info in read_header(path).items():
        if info.dtype not in _TYPES:
            raise ModelFileError(f"{path}: {shown(key)} is of type {info.dtype}; known: {', '.join(_TYPES)}")
        if not key.startswith(PREFIX):
            raise ModelFileError(f"{path}: {shown(key)} does not begin with {PREFIX}, as peft's keys do")
        name = key.removeprefix(PREFIX)
        ending = next((ending for ending in _PARTS if name.endswith(ending)), None)
        if ending is None:
            _add(replaced, canonical(name.replace(".base_layer.", ".")), info, path)
        else:
            _add(parts.setdefault(name.removesuffix(ending), {}), _PARTS[ending], info, path)
    updates: dict[str, LowRank] = {}
    for module, found in parts.items():
        update = _read_update(module, found, config, path)
        name = canonical(f"{module}.weight")
        if name in updates:
            raise ModelFileError(f"{path}: {shown(name)} comes twice")
        updates[name] = replace(update, module=name.removesuffix(".weight"))
    if not updates and not replaced:
        raise ModelFileError(f"{path}: it has no tensors")
    _check_replaced(config, replaced, updates, path)
    return Adapter(directory, config, updates, replaced)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def is_adapter(directory: Path) -> bool:
    """Whether there is an adapter in ``directory``, of whatever kind, and no model."""
    return os.path.isfile(directory / ADAPTER_CONFIG) and not os.path.exists(directory / "config.json")


def check_is_adapter(directory: Path) -> None:
    """Raise `ModelNotFound` where there is no adapter, `ModelFileError` where its weights are a pickle."""
    try:
        if not os.path.isfile(directory / ADAPTER_CONFIG):
            raise ModelNotFound(
                f"{directory}: not an adapter (it has no {ADAPTER_CONFIG})",
                hint=f"give a directory that holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as peft writes it",
            )
        if not (directory / ADAPTER_WEIGHTS).exists() and (directory / ADAPTER_PICKLE).exists():
            raise ModelFileError(
                f"{directory / ADAPTER_PICKLE}: a pickle, which can carry code; it is not read",
                hint="if you trust it, load it with peft and save it again: that writes safetensors",
            )
    except OSError as error:
        raise ModelFileError(f"{directory}: {error.strerror or error}") from None


def fingerprint(directory: Path) -> str:
    """A SHA-256 of the adapter's files, in hex. Raises `ModelFileError`."""
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with open_file(directory / name) as file:
            content = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                content.update(block)
        digest.update(f"{name}\0{content.hexdigest()}\0".encode())
    return digest.hexdigest()


def _add(table: dict[str, TensorInfo], name: str, info: TensorInfo, path: Path) -> None:
    if name in table:
        raise ModelFileError(f"{path}: {shown(info.key)} comes twice")
    table[name] = info


def _read_update(module: str, found: Mapping[str, TensorInfo], config: AdapterConfig, path: Path) -> LowRank:
    """The update of one module. Raises `ModelFileError` unless its tensors go together."""
    embedding = _EMBEDDING + _A in found or _EMBEDDING + _B in found
    kind = _EMBEDDING if embedding else ""
    wanted = {kind + _A, kind + _B} | ({_MAGNITUDE} if config.use_dora else set())
    if found.keys() != wanted:
        raise ModelFileError(f"{path}: the update of {shown(module)} does not have the tensors that it needs")
    if embedding and config.use_dora:
        raise ModelFileError(f"{path}: DoRA of the embeddings {shown(module)} is not supported")
    a, b, magnitude = found[kind + _A], found[kind + _B], found.get(_MAGNITUDE)
    rank = config.rank_of(module)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelFileError(
            f"{path}: the update of {shown(module)} is {list(b.shape)} times {list(a.shape)}; the config "
            f"asks for rank {rank}"
        )
    if magnitude is not None and magnitude.shape != (b.shape[0],):
        raise ModelFileError(f"{path}: {shown(magnitude.key)} has shape {list(magnitude.shape)}")
    return LowRank(
        module=module,
        a=a,
        b=b,
        magnitude=magnitude,
        embedding=embedding,
        scaling=config.scaling_of(module),
    )


def _check_replaced(
    config: AdapterConfig, replaced: Iterable[str], updates: Mapping[str, LowRank], path: Path
) -> None:
    """The config has a reason for each tensor that is replaced as a whole; what it names is there."""
    names = set(replaced)
    for name in names:
        own = name.endswith(".weight") and name in updates
        if not own and not _is_saved(config, name, updates):
            raise ModelFileError(
                f"{path}: {shown(name)} is in the weights, and the config does not speak of it"
            )
    for saved in config.modules_to_save:
        if not any(_lies_in(name, saved) for name in names):
            raise ModelFileError(f"{path}: the module {shown(saved)}, which was saved whole, is missing")


def _is_saved(config: AdapterConfig, name: str, updates: Mapping[str, LowRank]) -> bool:
    """Whether the config says that the base's tensor ``name`` is replaced."""
    if any(_lies_in(name, saved) for saved in config.modules_to_save):
        return True
    module, _, part = name.rpartition(".")
    return part == "bias" and (
        config.bias == "all" or (config.bias == "lora_only" and f"{module}.weight" in updates)
    )


def _lies_in(name: str, saved: str) -> bool:
    """Whether the tensor ``name`` is in a module whose name ends as ``saved``."""
    parts = name.split(".")[:-1]
    return any(".".join(parts[: n + 1]).endswith(saved) for n in range(len(parts)))
