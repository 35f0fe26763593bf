"""Writing a tiny model as llama.cpp reads it: GGUF version 3, all in fp32."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

_ALIGNMENT = 32
_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_WHOLE = {"wte.weight": "token_embd.weight", "wpe.weight": "position_embd.weight"}


def write_gguf(path: Path, model: Path) -> Path:
    """Write the model of `support.make_model` in the directory ``model``; the path."""
    facts = _facts(
        json.loads((model / "config.json").read_text()), json.loads((model / "vocab.json").read_text())
    )
    tensors = {
        _name(key): _laid_out(key, value) for key, value in load_file(model / "model.safetensors").items()
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(_text(key) + value for key, value in facts.items())
    data = b""
    for name, array in tensors.items():
        sizes = struct.pack(f"<{array.ndim}Q", *reversed(array.shape))
        head += _text(name) + struct.pack("<I", array.ndim) + sizes + struct.pack("<IQ", 0, len(data))
        data = _padded(data + array.tobytes())
    path.write_bytes(_padded(head) + data)
    return path


def _name(key: str) -> str:
    key = key.removeprefix("transformer.")
    if key in _WHOLE:
        return _WHOLE[key]
    if key.startswith("ln_f."):
        return key.replace("ln_f", "output_norm")
    _, layer, rest = key.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[part]}.{kind}"


def _laid_out(key: str, array: Any) -> Any:
    """Matrices are [out, in] there; embeddings are as they are."""
    transposed = array.ndim == 2 and ".h." in f".{key}"
    return np.ascontiguousarray(array.T if transposed else array, np.float32)


def _facts(config: dict[str, Any], vocab: dict[str, int]) -> dict[str, bytes]:
    tokens = sorted(vocab, key=lambda token: vocab[token])
    return {
        "general.architecture": _fact(8, _text("gpt2")),
        "gpt2.context_length": _fact(4, _whole(config["n_positions"])),
        "gpt2.embedding_length": _fact(4, _whole(config["n_embd"])),
        "gpt2.block_count": _fact(4, _whole(config["n_layer"])),
        "gpt2.feed_forward_length": _fact(4, _whole(4 * config["n_embd"])),
        "gpt2.attention.head_count": _fact(4, _whole(config["n_head"])),
        "gpt2.attention.layer_norm_epsilon": _fact(6, struct.pack("<f", config["layer_norm_epsilon"])),
        "tokenizer.ggml.model": _fact(8, _text("gpt2")),
        "tokenizer.ggml.pre": _fact(8, _text("gpt-2")),
        "tokenizer.ggml.tokens": _list(8, [_text(token) for token in tokens]),
        "tokenizer.ggml.token_type": _list(5, [_whole(3 if token == tokens[-1] else 1) for token in tokens]),
        "tokenizer.ggml.merges": _list(8, []),
        "tokenizer.ggml.eos_token_id": _fact(4, _whole(len(tokens) - 1)),
    }


def _fact(kind: int, value: bytes) -> bytes:
    return _whole(kind) + value


def _list(kind: int, values: list[bytes]) -> bytes:
    return _fact(9, _whole(kind) + struct.pack("<Q", len(values)) + b"".join(values))


def _whole(number: int) -> bytes:
    return struct.pack("<I", number)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
