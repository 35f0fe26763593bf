"""How the native backend keeps keys and values: fp32, fp16, or 8 bits with scales by head and token."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from native_models import PRECISIONS, needs_native, open_native, random_ids, whole
from support import make_model, replace_tensor, tensors_of

from gpt2cli.core.backend import Floats
from gpt2cli.core.native import backend as backend_module
from gpt2cli.core.native.library import F16, F32, I8
from gpt2cli.core.quantise import Kind

pytestmark = needs_native

CONTEXT = 300


def _model(folder: Path, n_head: int = 2) -> Path:
    return make_model(folder, tokenizer=None, n_embd=128, n_head=n_head, n_layer=2, n_positions=CONTEXT)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("n_head", [2, 4])
def test_what_a_token_takes(tmp_path: Path, precision: Kind, n_head: int) -> None:
    """8 bits only where heads are 64 wide: there a number takes a byte, and each head two scales."""
    backend = open_native(_model(tmp_path, n_head), precision)
    numbers = 2 * 2 * 128
    if precision in ("int8", "int4"):
        expected = numbers + 4 * 2 * 2 * n_head if n_head == 2 else 2 * numbers
    else:
        expected = numbers * (4 if precision == "fp32" else 2)
    assert backend.bytes_per_token == expected


def test_8_bits_are_near_32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole context, with all else in fp32; what is left is the rounding."""
    directory = _model(tmp_path)
    found: dict[int, Floats] = {}
    for kind in (I8, F16, F32):
        monkeypatch.setattr(backend_module, "cache_type", lambda config, precision, kind=kind: kind)
        backend = open_native(directory, "fp32")
        found[kind] = whole(backend, _ids(backend.config.vocab_size))
        backend.close()
    spread = float(found[F32].std())
    moved = {kind: float(np.abs(found[kind] - found[F32]).mean()) / spread for kind in (I8, F16)}
    assert 0 < moved[F16] < 0.003, moved
    assert moved[F16] < moved[I8] < 0.06, moved


def test_numbers_that_no_precision_holds(tmp_path: Path) -> None:
    """Keys and values far beyond 65,504 do not make what other tokens see infinite or no number."""
    directory = _model(tmp_path)
    bias = tensors_of(directory)["transformer.h.0.attn.c_attn.bias"]
    bias[128:] = 3e38
    replace_tensor(directory, "transformer.h.0.attn.c_attn.bias", bias)
    for precision in ("fp16", "int8", "int4"):
        backend = open_native(directory, precision)  # type: ignore[arg-type]
        assert np.isfinite(whole(backend, _ids(backend.config.vocab_size))).all(), precision
        backend.close()


def _ids(vocabulary: int) -> list[int]:
    return random_ids(random.Random(0), vocabulary, CONTEXT)
