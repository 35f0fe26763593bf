"""The step in fixed shapes computes what the forward pass does; recorded, on a machine with a GPU."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_model, text_logits

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.backend import Batch
from gpt2cli.core.cuda_graph import SPARE, DecodeGraphs, Pool, static_step, step_inputs
from gpt2cli.core.torch_gpt2 import TorchBackend, TorchGPT2, load_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
PROMPTS = [[1, 2, 3, 4, 5], [9], [7] * 11]


def _model(directory: Path, device: str, precision: str = "fp32", **config: int) -> TorchGPT2:
    path = make_model(directory, tokenizer=None, std=0.2, **config)
    return load_model(open_checkpoint(path), precision, device)  # type: ignore[arg-type]


def _filled(model: TorchGPT2, pool: Pool) -> dict[int, list[int]]:
    texts = {pool.new(): [*prompt] for prompt in PROMPTS}
    model.hidden_states(Batch.of([(slot, 0, text) for slot, text in texts.items()]), pool)
    return texts


def _next(texts: dict[int, list[int]], seed: int) -> Batch:
    """A token more for each text."""
    pick, parts = random.Random(seed), []
    for slot, text in texts.items():
        text.append(pick.randrange(257))
        parts.append((slot, len(text) - 1, text[-1:]))
    return Batch.of(parts)


def test_fixed_shapes(tmp_path: Path) -> None:
    """Rows at different places, over slots longer than any of them, beside rows that are not needed."""
    model = _model(tmp_path, "cpu")
    pool = Pool(model.config, model.device)
    texts = _filled(model, pool)
    assert SPARE not in texts
    for step in range(5):
        batch = _next(texts, step)
        found = static_step(model, pool.whole, step_inputs(batch, 4))
        expected = torch.stack([logits[-1] for logits in text_logits(model, *texts.values())])
        torch.testing.assert_close(found[:3], expected, rtol=0, atol=1e-5)
        assert bool(found[3].isfinite().all())


def test_a_text_that_left_a_nan(tmp_path: Path) -> None:
    """Behind the mask it would be multiplied by nothing, which is NaN too."""
    model = _model(tmp_path, "cpu")
    pool = Pool(model.config, model.device)
    slot = pool.new()
    pool.buffer(slot).fill_(float("nan"))
    pool.free(slot)
    assert pool.new() == slot
    found = static_step(model, pool.whole, step_inputs(Batch.of([(slot, 0, [5])]), 1))
    torch.testing.assert_close(found[0], text_logits(model, [5])[0][0], rtol=0, atol=1e-5)


def test_the_pool_grows(tmp_path: Path) -> None:
    """In slots and in tokens, and keeps what it has."""
    model = _model(tmp_path, "cpu", n_positions=700)
    pool = Pool(model.config, model.device)
    texts = _filled(model, pool)
    small = pool.whole
    for _ in range(5):
        slot = pool.new()
        texts[slot] = [slot]
        model.hidden_states(Batch.of([(slot, 0, [slot])]), pool)
    long = [n % 257 for n in range(300)]
    slot = pool.new()
    texts[slot] = long
    model.hidden_states(Batch.of([(slot, 0, long)]), pool)
    assert len(pool.whole) > len(small) and pool.whole.shape[4] > small.shape[4]
    found = static_step(model, pool.whole, step_inputs(_next(texts, 0), 16))
    expected = torch.stack([logits[-1] for logits in text_logits(model, *texts.values())])
    torch.testing.assert_close(found[: len(texts)], expected, rtol=0, atol=1e-5)


@needs_cuda
def test_recorded(tmp_path: Path) -> None:
    """Texts join, leave and grow; for each number of rows, rounded up, a step is recorded once."""
    model = _model(tmp_path, "cuda", n_positions=700)
    pool = Pool(model.config, model.device)
    graphs = DecodeGraphs(model, pool)
    texts = _filled(model, pool)

    def check(seed: int) -> None:
        found = graphs.step(_next(texts, seed))
        expected = torch.stack([logits[-1] for logits in text_logits(model, *texts.values())])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    for step in range(3):
        check(step)
    recorded = dict(graphs._graphs)
    assert [*recorded] == [4]
    pool.free(gone := next(iter(texts)))
    del texts[gone]
    check(3)
    texts[pool.new()] = []
    check(4)
    assert graphs._graphs[4] is recorded[4] and sorted(graphs._graphs) == [2, 4]
    for seed in range(300):
        _next(texts, seed)
    model.hidden_states(Batch.of([(slot, 0, text) for slot, text in texts.items()]), pool)
    check(5)
    assert graphs._graphs[4] is not recorded[4]


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_the_same_logits_as_on_a_cpu(tmp_path: Path, precision: str) -> None:
    """In fp32, and near it where weights are rounded alike."""
    texts = [[*prompt] for prompt in PROMPTS]
    found = []
    for device in ("cuda", "cpu"):
        backend = TorchBackend(_model(tmp_path, device, precision))
        slots = [backend.new_slot() for _ in texts]
        backend.forward(Batch.of([(slot, 0, text) for slot, text in zip(slots, texts, strict=True)]))
        batch = Batch.of([(slot, len(text), [4]) for slot, text in zip(slots, texts, strict=True)])
        found.append(backend.forward(batch))
    tolerance = {"fp16": 0.05, "bf16": 0.3}.get(precision, 1e-3)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=tolerance)
