"""What the faster precisions cost: perplexity of the built-in model on texts that it has never read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support import native_available, series, shared, some_slow

import gpt2cli
from gpt2cli.core.backend import Batch
from gpt2cli.core.engine import Engine
from gpt2cli.options import LoadOptions

BUILTIN = Path(gpt2cli.__file__).parent / "builtin"
HOLDOUT = [
    "tinystories_a-valid-sample_tail.txt",
    "fairy_the-grey-fairy-book_pg6746.txt",
    "classic_black-beauty_anna-sewell.txt",
]
CHARACTERS = 20_000
LARGEST_CHANGE = {"auto": 0.0002, "fp16": 0.0002, "bf16": 0.001, "int8": 0.005, "int4": 0.07}


def _perplexity(text: str, precision: str, name: str) -> float:
    """In windows of the whole context."""
    load = LoadOptions(precision=precision, backend=name, device="cpu")  # type: ignore[arg-type]
    engine = Engine.load(BUILTIN, load)
    ids, context, backend = engine.encode(text), engine.config.n_positions, engine.backend
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, context):
        window, slot = ids[start : start + context + 1], backend.new_slot()
        batch = Batch.of([(slot, 0, window[:-1])], wanted=range(len(window) - 1))
        logits = torch.from_numpy(backend.forward(batch))
        backend.free_slot(slot)
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum"))
        count += len(window) - 1
    backend.close()
    return math.exp(total / count)


@pytest.mark.parametrize(
    "case",
    some_slow([(backend, name) for backend in ("native", "torch")[: series(2, 1)] for name in HOLDOUT], 0),
    ids=str,
)
def test_perplexity(case: tuple[str, str], record_property: pytest.RecordProperty) -> None:
    backend, name = case
    if backend == "native" and not native_available():
        pytest.skip("the native library is not available")
    text = shared("corpus", "holdout", name).read_text("utf-8")[:CHARACTERS]
    exact = _perplexity(text, "fp32", backend)
    for precision, largest in LARGEST_CHANGE.items():
        change = _perplexity(text, precision, backend) / exact - 1
        record_property(f"{precision} %", round(100 * change, 4))
        assert abs(change) < largest, precision
