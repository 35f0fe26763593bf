"""Small tokenizers of the kinds that other families have, trained here, each in a folder of its own."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXTS = [
    "The cat sat on the mat. The cat's name was Tom, and it didn't like the rain.",
    "Once upon a time there was a king who had three daughters; they lived by the sea.",
    "Größe, naïve café, façade. Привет мир! Ελληνικά. 中文字符 日本語 한국어 العربية",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))  # 42\t1234567890",
    "😀 👩‍👩‍👧 👍🏽 🏳️‍🌈 e\u0301",
] * 20
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


def charsmap(rules: dict[str, str]) -> str:
    """A ``precompiled_charsmap`` that replaces texts: each state has a block of 256 units of its own."""
    states = {b"": 0}
    for source in rules:
        data = source.encode()
        for end in range(1, len(data) + 1):
            states.setdefault(data[:end], len(states))
    # A unit leads to its state's block, relative to its own place; the root's block begins behind its unit.
    units = [0] * (256 * (len(states) + 1))
    base = {prefix: 256 * (number + 1) for prefix, number in states.items()}

    def unit(place: int, target: int, label: int, leaf: bool) -> int:
        # Offsets of whole blocks have their low byte clear: they are written shifted by eight bits.
        return ((place ^ target) >> 8) << 10 | 0x200 | leaf << 8 | label

    texts = b""
    replaced = {source.encode(): target for source, target in rules.items()}
    for prefix in states:
        if prefix:
            place = base[prefix[:-1]] ^ prefix[-1]
            leaf = prefix in replaced
            # The low byte of the place must vanish: children lie at the block's place with a byte's bits.
            units[place] = unit(place & ~0xFF, base[prefix], prefix[-1], leaf)
            if leaf:
                units[base[prefix] ^ (place & 0xFF)] = 1 << 31 | len(texts)
                texts += replaced[prefix].encode() + b"\0"
    units[0] = unit(0, base[b""], 0, False)
    return base64.b64encode(struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts).decode()


def _save(directory: Path, backend: Any, config: dict[str, Any] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    whole = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps({**whole, **(config or {})}))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


def byte_level(directory: Path, *, bos: bool = False) -> Path:
    """As of Llama 3 and Qwen: bytes, a regular expression, many special tokens; with ``bos`` a template."""
    import tokenizers
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=bos))
    if not bos:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(["<|begin|>", *CHAT_TOKENS])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ", normalized=False)])
    if bos:
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin|> $A", special_tokens=[("<|begin|>", backend.token_to_id("<|begin|>"))]
                ),
            ]
        )
    return _save(directory, backend, {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"})


def sentencepiece_bpe(directory: Path, prefix: str = "first") -> Path:
    """As of Llama 2 (``first``, or ``normalizer`` in its older form) and Gemma (``never``)."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always" if prefix == "normalizer" else prefix
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    backend.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    table = json.loads(backend.to_str())
    vocab = table["model"]["vocab"]
    for byte in bytes_:
        vocab.setdefault(byte, len(vocab))
    backend = tokenizers.Tokenizer.from_str(json.dumps(table))
    if prefix == "normalizer":
        backend.pre_tokenizer = None  # type: ignore[assignment]
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(parts)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken("<start_of_turn>", normalized=False), "<end_of_turn>"])
    backend.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False)])
    backend.add_tokens([AddedToken("word", single_word=True), AddedToken("<x>", lstrip=True, rstrip=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _save(directory, backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def unigram(directory: Path) -> Path:
    """As of XGLM: a unigram model behind a map of characters, eos before a text."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    rules = {
        "ﬁ": "fi",
        "\uff21": "A",
        "①": "1",
        "\u3000": " ",
        "e\u0301": "é",
        "\x07": "",
        "½": "1\u20442",
        "ﷺ": "صلى",
    }
    state = {"type": "Precompiled", "precompiled_charsmap": charsmap(rules)}
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    table = json.loads(backend.to_str())
    table["normalizer"] = {"type": "Sequence", "normalizers": [state, {"type": "NFC"}]}
    backend = tokenizers.Tokenizer.from_str(json.dumps(table))
    assert isinstance(backend.normalizer, normalizers.Sequence)
    return _save(directory, backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def gpt1(directory: Path) -> Path:
    """As of GPT-1: lower-cased words that end with ``</w>``; no bos."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _save(directory, backend, {"unk_token": "<unk>"})


KINDS: dict[str, Callable[[Path], Path]] = {
    "qwen": byte_level,
    "llama 3": lambda directory: byte_level(directory, bos=True),
    "llama 2": sentencepiece_bpe,
    "llama 2, older": lambda directory: sentencepiece_bpe(directory, "normalizer"),
    "metaspace always": lambda directory: sentencepiece_bpe(directory, "always"),
    "gemma": lambda directory: sentencepiece_bpe(directory, "never"),
    "xglm": unigram,
    "gpt-1": gpt1,
}
