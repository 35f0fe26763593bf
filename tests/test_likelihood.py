"""What a log-likelihood comes to."""

from __future__ import annotations

import math

import pytest

from gpt2cli.likelihood import bits, bits_per_byte, perplexity


def test_of_something() -> None:
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7)
    assert bits(math.log(8)) == pytest.approx(3)
    assert bits_per_byte(math.log(16), 8) == pytest.approx(0.5)


def test_of_nothing_and_of_too_much() -> None:
    """JSON has no infinity: there is no figure then."""
    assert perplexity(0.0, 0) is None
    assert perplexity(1400.1, 2) is None
    assert bits_per_byte(1.0, 0) is None
    assert bits_per_byte(1.0, None) is None
