"""A new model: a byte-level BPE trained on the data, and random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.errors import UsageError
from gpt2cli.model_files import TOKENIZER_FILE
from gpt2cli.train.options import MIN_VOCAB, ShapeOptions

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int, directory: Path) -> None:
    """Train GPT-2's kind of tokenizer (Radford et al. 2019, section 2.2) on ``texts``, into ``directory``.

    The end-of-text token has the last id, as in GPT-2. Raises `UsageError` when the text is too little
    for a vocabulary of that size.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if backend.get_vocab_size() < vocab_size - 1:
        raise UsageError(
            f"the training text gives a vocabulary of {backend.get_vocab_size() + 1}, not {vocab_size}",
            hint=f"give more text, or --vocab-size {max(MIN_VOCAB, backend.get_vocab_size() + 1)}",
        )
    backend.add_special_tokens([END_OF_TEXT])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def new_model(shape: ShapeOptions, dropout: float, seed: int) -> GPT2LMHeadModel:
    """GPT-2 with random weights, initialised as transformers does after the paper."""
    end_of_text = shape.vocab_size - 1
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)
