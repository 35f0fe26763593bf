"""Random small models of other architectures than GPT-2, written as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCAB, CONTEXT = 211, 96
_HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_HF, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "gpt_neox": _HF,
    "mamba": {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4},
    "openai-gpt": _GPT,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": CONTEXT,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 16,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": CONTEXT},
    "qwen2": _GROUPED,
    "qwen3": {**_GEMMA},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_GEMMA, "sliding_window": 8, "query_pre_attn_scalar": 8},
}
"""The families of `families.NAMES`, those of the default tests first."""

FAST = ("llama", "gpt_neox", "mamba")

OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {**_GROUPED, "sliding_window": 8},
    "phi3": {**_GROUPED, "pad_token_id": 0},
    "qwen3_moe": {**_GEMMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
"""Architectures that are tried without being known."""


def random_model(kind: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Any:
    """A model of transformers with weights that make its logits differ clearly, in eval mode."""
    import torch
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    given = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[kind](**{**given, **{**CONFIGS, **OTHERS}[kind], **changes})
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.to(getattr(torch, dtype)).eval()


def write_family(directory: Path, kind: str, *, tokenizer: bool = True, **given: Any) -> Any:
    """Write a random model into ``directory``, with the byte tokenizer of the tests; the model."""
    from support import write_byte_tokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = random_model(kind, **({} if not tokenizer else {"vocab_size": 257 + 4}), **given)
    model.save_pretrained(directory)
    if tokenizer:
        write_byte_tokenizer(directory)
        # Of most families the other two files do not say how words are cut.
        write_byte_level(directory, json.loads((directory / "vocab.json").read_text()))
    return model


def write_base(base: Path, kind: str) -> Path:
    """Two good folders of one model for `damage.damaged`, ``single`` and ``sharded``."""
    for name, size in (("single", "1GB"), ("sharded", "12KB")):
        model = write_family(base / name, kind)
        model.save_pretrained(base / name, max_shard_size=size)
        if name == "sharded":
            (base / name / "model.safetensors").unlink()
    return base


def write_byte_level(directory: Path, vocab: dict[str, int]) -> None:
    """Write tokenizer.json for the symbols of a vocab.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))


def change_config(directory: Path, **changes: Any) -> None:
    """Write fields of config.json anew; None removes one."""
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
