"""What tests share: the reference data outside the repository, and tiny random models.

Torch is imported where it is used, so that the tests of torch-free modules do not wait for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GPT2CLI_SHARED") or REPOSITORY.parent / "shared")
SHARED_REQUIRED = os.environ.get("GPT2CLI_REQUIRE_SHARED") == "1"

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 256


def some_slow(cases: Iterable[Any], fast: int) -> list[Any]:
    """Parameters of which all but the first ``fast`` are left to the slow run."""
    return [
        case if number < fast else pytest.param(case, marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


def series(full: int, usual: int) -> int:
    """How many cases a long series has: ``usual`` in the time of CI, ``full`` with GPT2CLI_FULL=1."""
    return full if os.environ.get("GPT2CLI_FULL") == "1" else usual


def load_fp32(directory: Path) -> Any:
    """An `Engine` in fp32, which is what is compared with transformers to the last digits."""
    from gpt2cli.core.engine import Engine
    from gpt2cli.options import LoadOptions

    return Engine.load(directory, LoadOptions(precision="fp32"))


def load_torch(directory: Path, precision: str = "fp32") -> Any:
    """A `TorchGPT2` on the CPU; a pickle is read where there is nothing else."""
    from gpt2cli.checkpoint import open_checkpoint
    from gpt2cli.core.torch_gpt2 import load_model

    return load_model(open_checkpoint(directory, allow_pickle=True), precision, "cpu")  # type: ignore[arg-type]


def text_logits(model: Any, *texts: Sequence[int]) -> list[Any]:
    """The logits [T, V] at every place of each text, all read in one batch by a `TorchGPT2`."""
    from gpt2cli.core.torch_model import whole_texts

    logits = model.logits(model.hidden_states(whole_texts(texts)))
    return list(logits.split([len(text) for text in texts]))


def tensors_of(directory: Path) -> dict[str, Any]:
    """The tensors of a model's safetensors file as torch has them."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def replace_tensor(directory: Path, name: str, tensor: Any) -> None:
    """Write one tensor of a model anew."""
    from safetensors.torch import save_file

    save_file({**tensors_of(directory), name: tensor}, directory / "model.safetensors")


def backend_logits(backend: Any, *texts: Sequence[int]) -> list[Any]:
    """The logits [T, V] at every place of each text, all read in one batch by a `Backend`."""
    import torch

    from gpt2cli.core.backend import Batch

    slots, total = [backend.new_slot() for _ in texts], sum(map(len, texts))
    batch = Batch.of([(slot, 0, ids) for slot, ids in zip(slots, texts, strict=True)], wanted=range(total))
    logits = torch.from_numpy(backend.forward(batch))
    for slot in slots:
        backend.free_slot(slot)
    return list(logits.split([len(text) for text in texts]))


BACKENDS = ("numpy", "torch", "native")
"""What an engine may run on in tests: `numpy_gpt2`, and the two of the package."""
OWN_BACKENDS = BACKENDS[1:]


def load_on(backend: str, directory: Path) -> Any:
    """An `Engine` in fp32 on one of `BACKENDS`; the test is skipped where that is not available."""
    from gpt2cli.core.engine import Engine
    from gpt2cli.options import LoadOptions

    if backend == "numpy":
        from numpy_gpt2 import load_numpy

        return load_numpy(directory)
    if backend == "native" and not native_available():
        pytest.skip("the native library is not available")
    load = LoadOptions(backend=backend, device="cpu", precision="fp32", threads=1)  # type: ignore[arg-type]
    return Engine.load(directory, load)


def native_available() -> bool:
    """Whether the package has its native library, and this processor runs it."""
    try:
        from gpt2cli.core import native
    except ImportError:
        return False
    return bool(native.available())


def shared(*parts: str) -> Path:
    """The path of a reference file, e.g. ``shared("models", "slm_4096_kunal", "hf")``.

    The test is skipped where it is absent; with ``GPT2CLI_REQUIRE_SHARED=1`` it fails.
    """
    path = SHARED.joinpath("data", *parts)
    if not path.exists():
        reason = f"{path} is absent; GPT2CLI_SHARED names the folder of the reference data"
        if SHARED_REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def make_model(
    directory: Path,
    *,
    seed: int = 0,
    tokenizer: str | None = "bytes",
    shards: int = 1,
    dtype: str = "float32",
    prefix: str = "transformer.",
    std: float = 0.3,
    generation: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a random model into ``directory`` (made if absent) as transformers would; the directory.

    ``tokenizer`` is ``"bytes"`` (257 entries, `write_byte_tokenizer`) or None; ``shards`` above 1 gives
    as many weight files and an index; ``prefix`` stands before every name but the head's; ``generation``
    is the content of generation_config.json; ``config`` overrides config.json, key by key. The matrices
    have the standard deviation ``std``, large enough for logits that differ clearly.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = {**_default_config(tokenizer), "dtype": dtype, **config}
    write_json(directory / "config.json", whole)
    if generation is not None:
        write_json(directory / "generation_config.json", generation)
    if tokenizer is not None:
        assert tokenizer == "bytes", tokenizer
        write_byte_tokenizer(directory)
    write_weights(directory, random_weights(whole, seed=seed, std=std, dtype=dtype, prefix=prefix), shards)
    return directory


def _default_config(tokenizer: str | None) -> dict[str, Any]:
    end_of_text = END_OF_TEXT_ID if tokenizer is not None else None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 257,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }


def random_weights(
    config: dict[str, Any],
    *,
    seed: int = 0,
    std: float = 0.3,
    dtype: str = "float32",
    prefix: str = "transformer.",
) -> dict[str, Any]:
    """The tensors of a random model under the names of a checkpoint."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    width, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, std: float = std, mean: float = 0.0) -> None:
        values = mean + std * torch.randn(shape, generator=generator)
        tensors[name] = values.to(getattr(torch, dtype))

    def layer(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.weight", inputs, outputs)
        add(f"{name}.bias", outputs, std=0.1)

    def norm(name: str) -> None:
        add(f"{name}.weight", width, std=0.1, mean=1.0)
        add(f"{name}.bias", width, std=0.1)

    add(f"{prefix}wte.weight", config["vocab_size"], width)
    add(f"{prefix}wpe.weight", config["n_positions"], width)
    for n in range(config["n_layer"]):
        norm(f"{prefix}h.{n}.ln_1")
        layer(f"{prefix}h.{n}.attn.c_attn", width, 3 * width)
        layer(f"{prefix}h.{n}.attn.c_proj", width, width)
        norm(f"{prefix}h.{n}.ln_2")
        layer(f"{prefix}h.{n}.mlp.c_fc", width, inner)
        layer(f"{prefix}h.{n}.mlp.c_proj", inner, width)
    norm(f"{prefix}ln_f")
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", config["vocab_size"], width)
    return tensors


def write_weights(directory: Path, tensors: dict[str, Any], shards: int = 1) -> None:
    """Write model.safetensors, or as many shards and their index."""
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata)
        return
    weight_map: dict[str, str] = {}
    for n in range(shards):
        part = {name: tensors[name] for name in list(tensors)[n::shards]}
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file(part, directory / file, metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_byte_tokenizer(directory: Path) -> None:
    """Write a vocab.json of GPT-2's 256 byte symbols and ``<|endoftext|>`` (id 256), without merges."""
    symbols = byte_symbols()
    vocab = {symbol: token_id for token_id, symbol in enumerate(symbols)}
    write_json(directory / "vocab.json", {**vocab, END_OF_TEXT: END_OF_TEXT_ID})
    (directory / "merges.txt").write_text("#version: 0.2\n", "utf-8")


def byte_symbols() -> list[str]:
    """GPT-2's printable symbols in the order of its ids 0 … 255: of '!', of '"', …, of byte 0, …"""
    shown = [chr(byte) for byte in range(256) if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD)]
    return shown + [chr(256 + n) for n in range(256 - len(shown))]


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as transformers writes its JSON files."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
