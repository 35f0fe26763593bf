"""The names of the files that a model directory is made of."""

from __future__ import annotations

CONFIG_FILES = ("config.json", "generation_config.json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
"""A tokenizer without `TOKENIZER_FILE`."""
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Tokenizers that are not read; a `TOKENIZER_FILE` beside them is."""
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
CARD = "README.md"
TEXT_FILES = (CARD, "LICENSE", "LICENSE.md", "LICENSE.txt")
