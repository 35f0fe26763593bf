"""Architectures beside GPT-2: which there are, and what is read of their ``config.json``.

The model itself is transformers' (`core/transformers_lm.py`). What is read here is what everything above a
backend asks for, whatever the architecture: vocabulary, context, depth, width, special tokens. No field can
name code: `transformers_config` leaves out whatever might load something or change how a model is run.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpt2cli.errors import ModelFileError
from gpt2cli.options import shown
from gpt2cli.untrusted import Fields

MAX_LAYERS = 512
MAX_WIDTH = 65_536
MAX_HEADS = 4096
MAX_VOCAB = 2**20
MAX_POSITIONS = 2**24
MAX_COUNT = 2**20
"""Of anything that a list inside a config counts: some classes build a list so long."""
MAX_EXPERTS = 4096

UNLIMITED_CONTEXT = 2048
"""The context of a model whose architecture has no limit (ALiBi, recurrent) and whose config names none: the
length that BLOOM, Pythia and Mamba were trained on."""

NAMES: Mapping[str, str] = {
    "openai-gpt": "GPT-1",
    "gpt_neo": "GPT-Neo",
    "gptj": "GPT-J",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "opt": "OPT",
    "bloom": "BLOOM",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "mamba": "Mamba",
}
"""The families whose ids and logits the tests hold against transformers, by ``model_type``."""

_UNLIMITED = ("bloom", "mamba")

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "width": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
}
"""What architectures call the same thing; `transformers` knows each under several of these names, too."""

_LEFT_OUT = {
    "architectures",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "distributed_config",
    "dtype",
    "experts_implementation",
    "fusion_config",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers_weights",
    "use_cache",
    "use_return_dict",
}
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAPPING = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalConfig:
    """What is known of any causal language model before it is loaded. Field names are GPT-2's."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    """0 for a model without attention."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        """The ``model_type`` of its ``config.json``."""
        raise NotImplementedError

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def boundary_ids(self) -> frozenset[int]:
        """The ids that stand for a beginning or an end, and for no text."""
        begin = () if self.bos_token_id is None else (self.bos_token_id,)
        return frozenset((*self.eos_token_ids, *begin))


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyConfig(CausalConfig):
    """The config of a model that transformers runs."""

    model_type: str
    n_kv_head: int = 0
    """Heads of the keys and values, fewer than of the queries where these share them."""
    kv_head_dim: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What transformers is given of the file (`transformers_config`)."""

    @property
    def architecture(self) -> str:
        """The ``model_type`` of its ``config.json``."""
        return self.model_type

    @property
    def tested(self) -> bool:
        """Whether the tests compare this family with transformers; others are tried."""
        return self.model_type in NAMES


def parse_family(raw: Mapping[str, Any], path: Path) -> FamilyConfig:
    """A `FamilyConfig` from the content of ``path``, whose ``model_type`` is not GPT-2's.

    Raises `ModelFileError` outside the limits, for a quantised model, and for a ``model_type`` that neither
    the tests nor the installed transformers know as a causal language model.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or not _MODEL_TYPE.fullmatch(kind) or not _is_known(kind):
        raise ModelFileError(
            f"{path}: the model is of type {shown(kind)}, which is no causal language model of transformers",
            hint="gpt2cli runs GPT-2 itself, and other causal language models through transformers",
        )
    if raw.get("is_encoder_decoder"):
        raise ModelFileError(f"{path}: a model with an encoder is not supported")
    if raw.get("quantization_config") is not None:
        raise ModelFileError(
            f"{path}: its weights are quantised, which is not supported",
            hint="use the model's unquantised weights",
        )
    _check_counts(raw, path)
    whole = Fields(raw, path)
    width = whole.integer(_field(raw, "width", path), None, 1, MAX_WIDTH)
    layers = whole.integer(_field(raw, "layers", path), None, 1, MAX_LAYERS)
    recurrent = not any(name in raw for name in _FIELDS["heads"])
    heads = 0 if recurrent else whole.integer(_field(raw, "heads", path), None, 1, MAX_HEADS)
    kv_heads = raw.get("num_key_value_heads") is not None
    head_dim = raw.get("head_dim") is not None
    vocab_size = whole.integer("vocab_size", None, 1, MAX_VOCAB)
    return FamilyConfig(
        model_type=kind,
        fields=transformers_config(raw),
        vocab_size=vocab_size,
        n_positions=_positions(raw, kind, path),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_kv_head=whole.integer("num_key_value_heads", None, 1, MAX_HEADS) if kv_heads else heads,
        kv_head_dim=whole.integer("head_dim", None, 1, MAX_WIDTH) if head_dim else width // max(1, heads),
        bos_token_id=whole.token_id("bos_token_id", vocab_size),
        eos_token_ids=whole.token_ids("eos_token_id", vocab_size),
    )


def is_causal_model(raw: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a family, or says itself that it is of a causal language model."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    if not isinstance(kind, str) or not isinstance(classes, list):
        return isinstance(kind, str) and kind in NAMES
    says_so = any(isinstance(name, str) and name.endswith("ForCausalLM") for name in classes)
    return kind in NAMES or (says_so and _is_known(kind))


def transformers_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that transformers is given: what decides what the model computes.

    What names code, a file, a kernel or an implementation is left out.
    """
    return {key: value for key, value in raw.items() if key not in _LEFT_OUT and not key.startswith("_")}


def _positions(raw: Mapping[str, Any], kind: str, path: Path) -> int:
    """The context. Raises `ModelFileError` for a family that has a limit and does not name it."""
    named = next((name for name in _FIELDS["positions"] if raw.get(name) is not None), None)
    if named is not None:
        return Fields(raw, path).integer(named, None, 1, MAX_POSITIONS)
    if kind in _UNLIMITED or kind not in NAMES:
        return UNLIMITED_CONTEXT
    raise ModelFileError(f"{path}: it has no max_position_embeddings")


def _field(raw: Mapping[str, Any], what: str, path: Path) -> str:
    """The name under which a config has ``what``. Raises `ModelFileError` without one."""
    named = next((name for name in _FIELDS[what] if raw.get(name) is not None), None)
    if named is None:
        raise ModelFileError(f"{path}: it has no {_FIELDS[what][0]}")
    return named


def _check_counts(raw: Mapping[str, Any], path: Path) -> None:
    """Raise `ModelFileError` for numbers by which a class would build a list without end."""
    for key, value in raw.items():
        if "expert" in key and type(value) is int and value > MAX_EXPERTS:
            raise ModelFileError(f"{path}: {key} is {shown(value)}; allowed: up to {MAX_EXPERTS}")
        waiting = [value] if isinstance(value, list) else []
        while waiting:
            here = waiting.pop()
            if isinstance(here, list):
                waiting.extend(here)
            elif type(here) is int and abs(here) > MAX_COUNT:
                raise ModelFileError(f"{path}: {key} counts to {shown(here)}; allowed: up to {MAX_COUNT}")


def _is_known(kind: str) -> bool:
    return kind in NAMES or kind in _types_of_transformers()


@lru_cache(maxsize=1)
def _types_of_transformers() -> frozenset[str]:
    """The model types that the installed transformers has a causal language model for, read from its source:
    importing it takes seconds."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return frozenset()
    source = Path(found.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        _, _, after = source.read_text("utf-8").partition(f"\n{_MAPPING} = OrderedDict(")
        # The call's only argument, a list of pairs, ends at the first line that closes it.
        pairs = ast.literal_eval(after.partition("\n)")[0].strip() or "[]")
        return frozenset(str(kind) for kind, _ in pairs)
    except (OSError, ValueError, SyntaxError, TypeError):
        return frozenset()
