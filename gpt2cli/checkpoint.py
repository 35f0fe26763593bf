"""A model directory, read and checked without torch: config, weight files, tensor table.

Nothing here trusts a file: sizes are capped before anything is read, a configuration is within its
limits before anything is built from it, and every tensor is present, of the expected shape and
within its file before one of them is loaded. What fails raises `ModelFileError`, in one line.

Tensors of GPT-2 are listed under their canonical names (``h.0.attn.c_attn.weight``), without the
``transformer.`` that some checkpoints put before them. Other architectures keep the names of the file; which
tensors they must have is known, and checked, when transformers loads them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2cli.adapter import Adapter, is_adapter, open_adapter
from gpt2cli.adapter_targets import family_targets, gpt2_targets, name_in_files
from gpt2cli.errors import InvalidOption, ModelFileError, ModelNotFound, UsageError
from gpt2cli.families import CausalConfig, parse_family
from gpt2cli.model_files import PICKLE_FILES, WEIGHT_FILES
from gpt2cli.options import GenerateOptions, shown, shown_names
from gpt2cli.safetensors_header import TensorInfo, read_header
from gpt2cli.shards import read_shards, shard_paths
from gpt2cli.untrusted import Fields, read_json

MAX_JSON_BYTES = 2**20
MAX_LAYERS = 64
MAX_EMBD = 8192
MAX_INNER = 8 * MAX_EMBD
MAX_VOCAB = 300_000
MAX_POSITIONS = 65_536

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "tanh")
_ACTIVATION_ALIASES = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_python": "gelu"}

WEIGHT_TYPES = ("F32", "F16", "BF16")
GENERATION_KEYS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_new_tokens",
)
"""What ``generation_config.json`` may set; the rest of it is ignored."""

_LEGACY_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_BUFFER = re.compile(
    r"(.*\.)?((attn|attention|self_attn|self_attention)\.(attention\.)?(bias|masked_bias|causal_mask)"
    r"|rotary_emb\.inv_freq|position_ids)"
)
"""Masks and the like that old checkpoints of other architectures carry; they are computed anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(CausalConfig):
    """The part of ``config.json`` that decides what a GPT-2 computes. Field names are the file's."""

    n_inner: int = 3072
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True

    @property
    def architecture(self) -> str:
        """The ``model_type`` of its ``config.json``."""
        return "gpt2"

    @property
    def parameters(self) -> int:
        """The number of weights, a tied head counted once."""
        shapes = expected_shapes(self)
        return sum(math.prod(shape) for shape in shapes.values())

    def attention_scale(self, layer: int) -> float:
        """What the scores of ``layer`` (from 0) are multiplied by."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked model directory.

    ``tensors`` maps names to safetensors entries; it is empty for a pickle, whose tensors
    are checked when it is read (`check_shapes`), and whose files are ``pickles``.
    """

    directory: Path
    config: CausalConfig
    generation: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    pickles: tuple[Path, ...] = ()
    adapter: Adapter | None = None
    """What changes the weights as they are read."""

    def with_adapter(self, directory: Path) -> Checkpoint:
        """This model with the LoRA adapter in ``directory``.

        Raises `ModelNotFound` where there is none, `ModelFileError` where it is damaged, refused or misfit.
        """
        if isinstance(self.config, ModelConfig):
            config = self.config
            # A tied head may get its own.
            shapes = {**expected_shapes(config), "lm_head.weight": (config.vocab_size, config.n_embd)}
            adapter = open_adapter(directory, lambda key: canonical_name(key) or key)
            return replace(self, adapter=adapter.fitted(gpt2_targets(shapes)))
        shapes = {name: info.shape for name, info in self.tensors.items()}
        adapter = open_adapter(directory, lambda key: name_in_files(key, shapes))
        return replace(self, adapter=adapter.fitted(family_targets(self.config.architecture, shapes)))

    @property
    def gpt2(self) -> ModelConfig:
        """The config of a model that is a GPT-2. Raises `UsageError` for any other architecture."""
        if not isinstance(self.config, ModelConfig):
            raise UsageError(
                f"{self.directory}: this is for GPT-2 only, not for models of type {self.config.architecture}"
            )
        return self.config

    @property
    def parameters(self) -> int:
        """The number of weights, a tied head counted once where that is known; 0 for a pickle of another
        architecture than GPT-2."""
        if isinstance(self.config, ModelConfig):
            return self.config.parameters
        return sum(math.prod(info.shape) for info in self.tensors.values())

    def generate_options(self, given: Mapping[str, Any]) -> GenerateOptions:
        """The options ``given``, over the model's own defaults, over ours. Raises `InvalidOption`."""
        own = {key: self.generation[key] for key in GENERATION_KEYS if self.generation.get(key) is not None}
        try:
            GenerateOptions(**own)
        except InvalidOption as error:
            raise ModelFileError(f"{self.directory / 'generation_config.json'}: {error}") from None
        if given.get("max_length") is not None:
            own.pop("max_new_tokens", None)
        return GenerateOptions(**{**own, **given})


def open_checkpoint(
    directory: Path, *, allow_pickle: bool = False, adapter: Path | None = None
) -> Checkpoint:
    """Read and check the model in ``directory``, and with it the LoRA ``adapter`` that is to change it.

    Raises `ModelNotFound` where there is no model, `ModelFileError` where one is damaged or refused.
    """
    found = _open_base(directory, allow_pickle=allow_pickle)
    return found if adapter is None else found.with_adapter(adapter)


def _open_base(directory: Path, *, allow_pickle: bool) -> Checkpoint:
    config, generation = read_config(directory)
    single, index = (directory / name for name in WEIGHT_FILES)
    if _exists(single):
        table = read_header(single)
    elif _exists(index):
        single, table = index, read_shards(index)
    else:
        return Checkpoint(directory, config, generation, pickles=_find_pickles(directory, allow_pickle))
    if isinstance(config, ModelConfig):
        tensors = _canonical(table, single)
        check_shapes(config, {name: info.shape for name, info in tensors.items()}, directory)
    else:
        tensors = _without_buffers(table, single)
    return Checkpoint(directory, config, generation, tensors=tensors)


def with_import_hint(error: ModelFileError, directory: Path) -> ModelFileError:
    """The error, for a command that has no --allow-pickle: the hint at it becomes one at a conversion."""
    if error.hint and "--allow-pickle" in error.hint:
        error.hint = f"convert it: gpt2cli import --allow-pickle --name NAME {directory}"
    return error


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a model, with the index of several. Raises `ModelFileError`."""
    for single, index in (WEIGHT_FILES, PICKLE_FILES):
        if _exists(directory / single):
            return [directory / single]
        if _exists(path := directory / index):
            return [path, *shard_paths(path)]
    raise ModelFileError(f"{directory}: it has no {WEIGHT_FILES[0]}")


def read_config(directory: Path) -> tuple[CausalConfig, Mapping[str, Any]]:
    """The configuration, and the sampling defaults of ``generation_config.json`` (empty without one)."""
    path = directory / "config.json"
    if not _exists(path):
        if is_adapter(directory):
            raise ModelNotFound(
                f"{directory}: an adapter, and no model", hint="name its model, and it: -m NAME --adapter DIR"
            )
        raise ModelNotFound(
            f"{directory}: not a model directory (it has no config.json)",
            hint="give a directory that holds config.json and model.safetensors",
        )
    raw = read_json(path, MAX_JSON_BYTES)
    config: CausalConfig
    config = parse_config(raw, path) if raw.get("model_type", "gpt2") == "gpt2" else parse_family(raw, path)
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path, MAX_JSON_BYTES) if _exists(generation_path) else {}
    # transformers takes the special ids from generation_config.json where it has them.
    own = Fields(generation, generation_path)
    if generation.get("bos_token_id") is not None:
        config = replace(config, bos_token_id=own.token_id("bos_token_id", config.vocab_size))
    if generation.get("eos_token_id") is not None:
        config = replace(config, eos_token_ids=own.token_ids("eos_token_id", config.vocab_size))
    return config, generation


def parse_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """A `ModelConfig` from the content of ``path``, a GPT-2's. Raises `ModelFileError` outside the limits.

    ``auto_map`` and ``attn_implementation`` are ignored: no remote code, ever.
    """
    if raw.get("add_cross_attention"):
        raise ModelFileError(f"{path}: cross-attention is not supported")
    whole = Fields(raw, path)
    n_embd = whole.integer("n_embd", 768, 1, MAX_EMBD)
    n_head = whole.integer("n_head", 12, 1, MAX_EMBD)
    if n_embd % n_head:
        raise ModelFileError(f"{path}: n_embd {n_embd} is not divisible by n_head {n_head}")
    inner = raw.get("n_inner") is not None
    vocab_size = whole.integer("vocab_size", 50257, 1, MAX_VOCAB)
    return ModelConfig(
        vocab_size=vocab_size,
        n_positions=whole.integer("n_positions", 1024, 1, MAX_POSITIONS),
        n_embd=n_embd,
        n_layer=whole.integer("n_layer", 12, 1, MAX_LAYERS),
        n_head=n_head,
        n_inner=whole.integer("n_inner", 0, 1, MAX_INNER) if inner else 4 * n_embd,
        activation_function=_activation(raw, path),
        layer_norm_epsilon=whole.fraction("layer_norm_epsilon", 1e-5),
        scale_attn_weights=whole.switch("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=whole.switch("scale_attn_by_inverse_layer_idx", False),
        reorder_and_upcast_attn=whole.switch("reorder_and_upcast_attn", False),
        tie_word_embeddings=whole.switch("tie_word_embeddings", True),
        bos_token_id=whole.token_id("bos_token_id", vocab_size),
        eos_token_ids=whole.token_ids("eos_token_id", vocab_size),
    )


def _activation(raw: Mapping[str, Any], path: Path) -> str:
    value = raw.get("activation_function", "gelu_new")
    name = _ACTIVATION_ALIASES.get(value, value) if isinstance(value, str) else value
    if name not in ACTIVATIONS:
        raise ModelFileError(
            f"{path}: activation_function is {shown(value)}; known: {', '.join(ACTIVATIONS)}"
        )
    return str(name)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The canonical name and shape of every tensor that a checkpoint of ``config`` must have.

    Weights of layers are in GPT-2's own Conv1D layout, [in, out].
    """
    d, inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, d),
        "wpe.weight": (config.n_positions, d),
    }
    for layer in range(config.n_layer):
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (d,),
            "ln_1.bias": (d,),
            "attn.c_attn.weight": (d, 3 * d),
            "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d),
            "attn.c_proj.bias": (d,),
            "ln_2.weight": (d,),
            "ln_2.bias": (d,),
            "mlp.c_fc.weight": (d, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, d),
            "mlp.c_proj.bias": (d,),
        }
        shapes.update({f"h.{layer}.{name}": shape for name, shape in block.items()})
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (d,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def canonical_name(key: str) -> str | None:
    """The canonical name of a checkpoint's key; None for the buffers that old checkpoints carry."""
    name = key.removeprefix("transformer.")
    return None if _LEGACY_BUFFER.fullmatch(name) else name


def check_shapes(config: ModelConfig, found: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Raise `ModelFileError` unless ``found`` is exactly what ``config`` asks for.

    A tied model may also carry its head; a head that differs from the embeddings is looked at when
    the weights are read.
    """
    expected = expected_shapes(config)
    allowed = {**expected, "lm_head.weight": (config.vocab_size, config.n_embd)}
    missing = expected.keys() - found.keys()
    if missing:
        raise ModelFileError(f"{where}: {shown_names(missing)} missing from the weights")
    extra = found.keys() - allowed.keys()
    if extra:
        raise ModelFileError(f"{where}: {shown_names(extra)} in the weights, which GPT-2 does not have")
    for name, shape in found.items():
        if tuple(shape) != allowed[name]:
            raise ModelFileError(
                f"{where}: {name} has shape {list(shape)}, the config asks for {list(allowed[name])}"
            )


def _canonical(table: Mapping[str, TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """The table under canonical names, legacy buffers left out."""
    tensors: dict[str, TensorInfo] = {}
    for key, info in table.items():
        name = canonical_name(key)
        if name in tensors:
            raise ModelFileError(f"{where}: {shown(name)} comes twice")
        if name is None:
            continue
        _check_type(key, info, where)
        tensors[name] = info
    return tensors


def _without_buffers(table: Mapping[str, TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """The table of another architecture's file, legacy buffers left out."""
    tensors = {key: info for key, info in table.items() if not is_buffer(key)}
    for key, info in tensors.items():
        _check_type(key, info, where)
    return tensors


def is_buffer(key: str) -> bool:
    """Whether a tensor of another architecture is no weight, but a mask or the like that is computed anew."""
    return _BUFFER.fullmatch(key) is not None


def _check_type(key: str, info: TensorInfo, where: Path) -> None:
    if info.dtype not in WEIGHT_TYPES:
        raise ModelFileError(f"{where}: {shown(key)} is of type {info.dtype}; known: F32, F16, BF16")


def _find_pickles(directory: Path, allowed: bool) -> tuple[Path, ...]:
    single, index = (directory / name for name in PICKLE_FILES)
    if not _exists(single) and not _exists(index):
        raise ModelFileError(f"{directory}: it has no model.safetensors")
    if not allowed:
        raise ModelFileError(
            f"{directory}: its weights are a pickle, which can carry code",
            hint="if you trust where they come from, add --allow-pickle",
        )
    if _exists(single):
        return (single,)
    return tuple(shard_paths(index))


def _exists(path: Path) -> bool:
    """Whether there is a file; pathlib's own raises for a name that is too long."""
    return os.path.exists(path)
