"""The order of training: every token once an epoch, and the same order on every run."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import InvalidOption, UsageError
from gpt2cli.train.options import TrainOptions
from gpt2cli.train.windows import MAX_LOGITS, Plan, WindowDataset, WindowSampler, make_plan

ORDER = [[(67, 8), (91, 8), (35, 8), (59, 8)], [(43, 8), (3, 8), (11, 8), (75, 8)], [(24, 16), (72, 16)]]


def plan_of(*, tokens: int = 1000, context: int = 64, vocab_size: int = 300, **options: Any) -> Plan:
    return make_plan(TrainOptions(**options), tokens=tokens, context=context, vocab_size=vocab_size)


def starts_of(plan: Plan, seed: int = 0) -> list[int]:
    return [start for batch in WindowSampler(plan, seed) for start, _ in batch]


@given(st.integers(3, 400), st.integers(2, 40), st.integers(0, 5))
def test_an_epoch_sees_every_token_once(tokens: int, window: int, seed: int) -> None:
    """But less than a window before its offset, and less than one at the end."""
    window = min(window, tokens - 1)
    plan = plan_of(tokens=tokens, window=window, steps=1, batch_size=1)
    sampler = WindowSampler(plan, seed)
    offset = next(sampler._starts(0, window)) % window
    count = (tokens - 1 - offset) // window
    starts = list(islice(sampler._starts(0, window), count))
    predicted = Counter(start + n for start in starts for n in range(1, window + 1))
    assert set(predicted.values()) == {1}
    first, last = min(predicted), max(predicted)
    assert len(predicted) == last - first + 1
    assert first <= window
    assert tokens - 1 - last < window


def test_every_epoch_is_cut_and_shuffled_anew() -> None:
    plan = plan_of(tokens=1001, window=10, steps=40, batch_size=10)
    starts = starts_of(plan)
    epochs = starts[:99], starts[100:199]
    assert len({start % 10 for start in starts}) > 1
    assert list(epochs[0]) != sorted(epochs[0])
    assert epochs[0] != epochs[1]


def test_order_is_a_function_of_the_seed() -> None:
    """Nor of the global random state: a resumed run must go on with the very next window."""
    plan = plan_of(steps=30, batch_size=4, window=16, short_window=8)
    torch.manual_seed(1)
    np.random.seed(1)
    first = list(WindowSampler(plan, 7))
    torch.manual_seed(2)
    np.random.seed(2)
    sampler = WindowSampler(plan, 7)
    assert list(sampler) == first
    assert list(sampler) == first, "an iterator does not move the next one"
    assert list(WindowSampler(plan, 8)) != first


def test_order_is_what_it_was() -> None:
    """A changed order would make every recipe give another model."""
    plan = plan_of(tokens=100, steps=3, batch_size=2, window=16, short_window=8, short_share=0.5)
    assert list(WindowSampler(plan, 1)) == ORDER


def test_micro_batches_make_up_the_same_steps() -> None:
    """Gradient accumulation must not change which text a step sees."""
    whole, parts = (plan_of(steps=20, batch_size=8, window=16, micro_batch_size=m) for m in (8, 2))
    assert starts_of(whole) == starts_of(parts)
    assert (whole.accumulation, parts.accumulation) == (1, 4)


def test_short_windows_first() -> None:
    """As many tokens a step, in more windows."""
    plan = plan_of(steps=20, batch_size=4, window=32, short_window=8, short_share=0.75, micro_batch_size=2)
    batches = list(WindowSampler(plan, 0))
    assert len(batches) == len(WindowSampler(plan, 0)) == 40
    for number, batch in enumerate(batches):
        window = plan.window_at(number // plan.accumulation)
        assert window == (8 if number < 30 else 32)
        assert {length for _, length in batch} == {window}
        assert len(batch) * window == 2 * 32
    assert plan.short_steps == 15
    assert plan_of(steps=20).short_steps == 0


@pytest.mark.parametrize("tokens", [17, 18, 33, 1000])
def test_windows_end_within_the_text(tokens: int) -> None:
    ids = np.arange(tokens, dtype="<u2")
    data = WindowDataset(ids)
    for batch in WindowSampler(plan_of(tokens=tokens, window=16, steps=50, batch_size=2), 3):
        for start, window in batch:
            row = data[start, window]
            assert row.dtype == torch.int64
            assert row.tolist() == list(range(start, start + window + 1))


def test_numbers_of_a_plan() -> None:
    plan = plan_of(tokens=10_000, batch_size=4, window=32, epochs=2, micro_batch_size=2)
    assert plan.tokens_per_step == 128
    assert plan.steps == 157
    assert plan.epochs == pytest.approx(157 * 128 / 10_000)
    assert plan.accumulation == 2
    assert plan_of(tokens=10_000, batch_size=4, window=32).steps == 79, "one epoch, unless said"
    assert plan_of(epochs=0.0001).steps == 1
    assert plan_of(steps=5).steps == 5


def test_window_is_the_context() -> None:
    assert plan_of().window == 64
    assert plan_of(tokens=10_000, context=4096).window == 1024


def test_micro_batch_by_the_logits() -> None:
    """The logits of a large vocabulary are what fills the memory."""
    assert plan_of(batch_size=12).micro_batch_size == 12
    vocab_size = MAX_LOGITS // 64 // 5
    assert plan_of(batch_size=12, vocab_size=vocab_size).micro_batch_size == 4
    assert plan_of(batch_size=7, vocab_size=vocab_size).micro_batch_size == 1
    assert plan_of(batch_size=7, vocab_size=2**24).micro_batch_size == 1


@pytest.mark.parametrize("tokens", [2, 64])
def test_too_little_text(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"{tokens} tokens: too few for a window of 64"):
        plan_of(tokens=tokens)
    assert plan_of(tokens=65).window == 64


def test_windows_that_do_not_fit() -> None:
    with pytest.raises(InvalidOption, match="context of 64"):
        plan_of(window=65)
    with pytest.raises(InvalidOption, match="short-window"):
        plan_of(window=32, short_window=7)
    with pytest.raises(InvalidOption, match="short-window"):
        plan_of(short_window=7)
    with pytest.raises(InvalidOption, match="micro-batch-size"):
        plan_of(batch_size=4, micro_batch_size=8)
