"""The ``adapter_config.json`` of peft: what of it decides the weights, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from gpt2cli.errors import ModelFileError
from gpt2cli.options import shown
from gpt2cli.untrusted import read_json

MAX_CONFIG_BYTES = 2**20
MAX_RANK = 8192
MAX_ALPHA = 1e6
MAX_NAMES = 10_000
_MAX_NAME = 300

T = TypeVar("T")
Bias = Literal["none", "all", "lora_only"]

_NO_MATTER = frozenset(
    {
        *("peft_version", "auto_mapping", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out"),
        *("layers_pattern", "megatron_core", "qalora_group_size", "runtime_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)
"""What only a training or a machine needs to know; how a matrix lies (``fan_in_fan_out``), the base tells."""
_READ = frozenset(
    {
        *(
            "peft_type",
            "task_type",
            "base_model_name_or_path",
            "r",
            "lora_alpha",
            "rank_pattern",
            "alpha_pattern",
        ),
        *("use_rslora", "use_dora", "bias", "modules_to_save", "target_modules", "exclude_modules"),
        *("layers_to_transform", "init_lora_weights"),
    }
)
_BASE_UNCHANGED = ("gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base as it is; others take something out of its weights."""
_TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
_LITERAL = re.compile(r"\^?[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The part of ``adapter_config.json`` that decides the weights. Names are the file's, but ``base``."""

    base: str | None
    """The model that it was made for, as its maker called it (``base_model_name_or_path``)."""
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    bias: Bias
    modules_to_save: tuple[str, ...]
    target_modules: tuple[str, ...] | None
    """None where they are given by a regular expression, which is not evaluated."""
    selects_layers: bool
    """Whether only some of the modules of these names have an update."""

    def rank_of(self, module: str) -> int:
        """The rank of a module's update."""
        return _matching(self.rank_pattern, module, self.r)

    def scaling_of(self, module: str) -> float:
        """What a module's product B A is multiplied by."""
        rank = self.rank_of(module)
        return _matching(self.alpha_pattern, module, self.lora_alpha) / (
            math.sqrt(rank) if self.use_rslora else rank
        )

    def names(self, module: str) -> bool | None:
        """Whether ``target_modules`` name the module; None where they are not told one by one."""
        if self.target_modules is None:
            return None
        return any(_ends_with(module, target) for target in self.target_modules)


def read_adapter_config(path: Path) -> AdapterConfig:
    """The content of ``path``. Raises `ModelFileError` for what is wrong or not supported."""
    raw = read_json(path, MAX_CONFIG_BYTES)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ModelFileError(
            f"{path}: an adapter of type {shown(kind)}", hint="gpt2cli applies adapters of type LORA"
        )
    for name, value in raw.items():
        if name not in _NO_MATTER and name not in _READ and value:
            raise ModelFileError(f"{path}: {name[:60]} is {shown(value)}, which is not supported")
    reader = _Reader(raw, path)
    reader.check_beginning()
    targets = reader.names("target_modules")
    return AdapterConfig(
        base=reader.base(),
        r=reader.rank("r", raw.get("r", 8)),
        lora_alpha=reader.alpha("lora_alpha", raw.get("lora_alpha", 8)),
        rank_pattern={key: reader.rank("rank_pattern", v) for key, v in reader.pattern("rank_pattern")},
        alpha_pattern={key: reader.alpha("alpha_pattern", v) for key, v in reader.pattern("alpha_pattern")},
        use_rslora=reader.switch("use_rslora"),
        use_dora=reader.switch("use_dora"),
        bias=reader.bias(),
        modules_to_save=reader.names("modules_to_save") or (),
        target_modules=targets,
        selects_layers=any(raw.get(name) is not None for name in ("layers_to_transform", "exclude_modules")),
    )


def _matching(pattern: Mapping[str, T], module: str, default: T) -> T:
    """What the first key of a pattern that means ``module`` says, as in peft: its whole name, or its end."""
    for key, value in pattern.items():
        if key.startswith("^"):
            if module == key[1:]:
                return value
        elif module == key or module.endswith(f".{key}"):
            return value
    return default


def _ends_with(module: str, target: str) -> bool:
    """Whether ``target`` is the module's name or its end; GPT-2's modules are below ``transformer``."""
    return any(name == target or name.endswith(f".{target}") for name in (module, f"transformer.{module}"))


class _Reader:
    """Typed access to the config; every complaint names the file and the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self._raw, self._path = raw, path

    def _refuse(self, name: str, value: Any, allowed: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {name} is {shown(value)}; allowed: {allowed}")

    def check_beginning(self) -> None:
        """Raise `ModelFileError` for another task, or a beginning that changed the base's own weights."""
        task = self._raw.get("task_type")
        if task not in _TASKS:
            raise self._refuse("task_type", task, "CAUSAL_LM")
        begun = self._raw.get("init_lora_weights", True)
        if type(begun) is not bool and begun not in _BASE_UNCHANGED:
            raise ModelFileError(
                f"{self._path}: init_lora_weights is {shown(begun)}, which changes the base too",
                hint="save it with peft's path_initial_model_for_weight_conversion",
            )

    def base(self) -> str | None:
        value = self._raw.get("base_model_name_or_path")
        if value is not None and not isinstance(value, str):
            raise self._refuse("base_model_name_or_path", value, "a name")
        return value or None

    def rank(self, name: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            raise self._refuse(name, value, f"1 to {MAX_RANK}")
        return value

    def alpha(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not abs(value) <= MAX_ALPHA:
            raise self._refuse(name, value, f"numbers up to {MAX_ALPHA:,.0f}")
        return float(value)

    def switch(self, name: str) -> bool:
        value = self._raw.get(name, False)
        if type(value) is not bool:
            raise self._refuse(name, value, "true, false")
        return value

    def bias(self) -> Bias:
        value = self._raw.get("bias", "none")
        if value not in ("none", "all", "lora_only"):
            raise self._refuse("bias", value, "none, all, lora_only")
        return value  # type: ignore[no-any-return]

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of modules; None where there is none, or a single text, which is a regular expression."""
        value = self._raw.get(name)
        if value is None or (isinstance(value, str) and name == "target_modules"):
            return None
        good = isinstance(value, list) and len(value) <= MAX_NAMES
        if not good or not all(isinstance(each, str) and 0 < len(each) <= _MAX_NAME for each in value):
            raise self._refuse(name, value, "names of modules")
        return tuple(value)

    def pattern(self, name: str) -> list[tuple[str, Any]]:
        """The pairs of a pattern. peft reads its keys as regular expressions; here they are names."""
        value = self._raw.get(name) or {}
        if not isinstance(value, dict) or len(value) > MAX_NAMES:
            raise self._refuse(name, value, "modules, each with a number")
        for key in value:
            if len(key) > _MAX_NAME or not _LITERAL.fullmatch(key):
                raise self._refuse(f"a key of {name}", key, "names of modules; no regular expressions")
        return list(value.items())
