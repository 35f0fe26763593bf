"""What the log-likelihood of a text comes to: perplexity and bits. It is given in nats, as everywhere."""

from __future__ import annotations

import math

LN2 = math.log(2)
MAX_MEAN = 700.0
"""Nats a token; the exponential of more is larger than any float."""


def bits(nats: float) -> float:
    """``nats`` in bits."""
    return nats / LN2


def perplexity(nll: float, count: int) -> float | None:
    """The perplexity of ``count`` tokens or words; None for none of them, and beyond what a float holds."""
    if not count or nll / count > MAX_MEAN:
        return None
    return math.exp(nll / count)


def bits_per_byte(nll: float, size: int | None) -> float | None:
    """The same whatever the tokenizer; None without a byte."""
    return bits(nll) / size if size else None
