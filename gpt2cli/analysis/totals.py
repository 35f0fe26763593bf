"""What the scores of many tokens come to: nll, perplexities, bits per byte. Sums are float64."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gpt2cli.likelihood import bits_per_byte, perplexity
from gpt2cli.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Totals:
    """Sums over tokens; nll is in nats."""

    tokens: int = 0
    """The tokens that were scored."""
    unscored: int = 0
    """The tokens that were not: the first of a text without bos, and of a window that overlaps no other."""
    nll: float = 0.0
    words: int = 0
    """White-space separated words (ASCII) that begin in a scored token."""
    bytes: int = 0
    """The bytes of the scored tokens."""
    windows: int = 0
    guide_nll: float = 0.0
    guide_tokens: int = 0

    def add(self, other: Totals) -> None:
        """Take in the sums of another part."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def mean_nll(self) -> float | None:
        """Nats a token."""
        return self.nll / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """Per token."""
        return perplexity(self.nll, self.tokens)

    @property
    def perplexity_per_word(self) -> float | None:
        """As in Merity et al. 2017 and the GPT-2 paper: independent of the tokenizer."""
        return perplexity(self.nll, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """Independent of the tokenizer."""
        return bits_per_byte(self.nll, self.bytes)

    @property
    def guide_perplexity(self) -> float | None:
        """The figure that the Hugging Face guide's loop prints: there a window's mean counts with one token
        less than the window has fresh ones, also where all of them were scored.
        """
        return perplexity(self.guide_nll, self.guide_tokens)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tokens": self.tokens,
            "unscored_tokens": self.unscored,
            "windows": self.windows,
            "nll": self.nll,
            "mean_nll": self.mean_nll,
            "perplexity": self.perplexity,
            "guide_perplexity": self.guide_perplexity,
            "words": self.words or None,
            "perplexity_per_word": self.perplexity_per_word,
            "bytes": self.bytes or None,
            "bits_per_byte": self.bits_per_byte,
        }


class TokenUnits:
    """The bytes and words that begin in tokens; without a tokenizer nothing is counted.

    ``special`` are the ids that stand for no text, as the end of text.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, special: Collection[int]) -> None:
        self._known = tokenizer is not None
        if tokenizer is None or not self._known:
            return
        texts = [b"" if token in special else tokenizer.token_bytes(token) for token in range(vocab_size)]
        opens = [bool(text) and not text[:1].isspace() for text in texts]
        self._bytes = torch.tensor([len(text) for text in texts])
        # Words that begin after the token's first byte; one at it counts where white space stands before.
        self._later = torch.tensor(
            [len(text.split()) - open_ for text, open_ in zip(texts, opens, strict=True)]
        )
        self._opens = torch.tensor(opens)
        self._closes = torch.tensor([not text or text[-1:].isspace() for text in texts])

    def count(self, ids: Tensor, first: int) -> tuple[int, int]:
        """The words and bytes of ``ids``: [T] from ``first`` (at least 1) on."""
        if not self._known:
            return 0, 0
        scored, before = ids[first:], ids[first - 1 : -1]
        words = self._later[scored].sum() + (self._opens[scored] & self._closes[before]).sum()
        return int(words), int(self._bytes[scored].sum())
