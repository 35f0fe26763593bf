"""The key-value cache: whatever was done to it, a row continues as it would alone from the start."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_model
from torch import Tensor

from gpt2cli.core.cache import KVCache
from gpt2cli.core.engine import Engine
from gpt2cli.core.model import GPT2

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT2:
    """Small logits (about 1), so that an absolute tolerance means the same in every row."""
    directory = tmp_path_factory.mktemp("cache")
    return Engine.load(make_model(directory, tokenizer=None, std=0.2, n_positions=48)).model


def _ids(model: GPT2, tokens: int, seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(model.config.vocab_size) for _ in range(tokens)]


def _alone(model: GPT2, ids: list[int]) -> Tensor:
    """The logits after ``ids``, [V], from an empty cache of one row."""
    return model.forward(torch.tensor([ids]), model.new_cache())[0]


def _append(model: GPT2, cache: KVCache, rows: list[list[int]]) -> Tensor:
    """One forward pass over rows of any length, padded with 0."""
    counts = [len(row) for row in rows]
    padded = torch.zeros(len(rows), max(counts), dtype=torch.long)
    for n, row in enumerate(rows):
        padded[n, : len(row)] = torch.tensor(row, dtype=torch.long)
    return model.forward(padded, cache, counts)


def _check_rows(model: GPT2, cache: KVCache, texts: list[list[int]]) -> None:
    """One token more for each row gives what the whole text gives alone."""
    assert cache.lengths == [len(text) for text in texts]
    longer = [[*text, 7 + n] for n, text in enumerate(texts)]
    found = _append(model, cache, [[text[-1]] for text in longer])
    for row, text in zip(found, longer, strict=True):
        torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("counts", [[1, 1], [5, 5, 5], [1, 9, 4], [12, 1], [3, 2, 8, 8]], ids=str)
def test_ragged_prefill(model: GPT2, counts: list[int]) -> None:
    texts = [_ids(model, count, n) for n, count in enumerate(counts)]
    cache = model.new_cache(rows=len(texts))
    found = _append(model, cache, texts)
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)
    _check_rows(model, cache, texts)


@pytest.mark.parametrize("then", [[1, 1, 1], [4, 4, 4], [6, 1, 3], [0, 5, 2]], ids=str)
@pytest.mark.parametrize("first", [[4, 4, 4], [2, 9, 5]], ids=str)
def test_ragged_prefill_on_top(model: GPT2, first: list[int], then: list[int]) -> None:
    """New tokens see what is in the cache, and nothing of the padding before them."""
    texts = [_ids(model, count, n) for n, count in enumerate(first)]
    cache = model.new_cache(rows=3)
    _append(model, cache, texts)
    more = [_ids(model, count, 10 + n) for n, count in enumerate(then)]
    found = _append(model, cache, more)
    texts = [text + new for text, new in zip(texts, more, strict=True)]
    for row, text, count in zip(found, texts, then, strict=True):
        if count:
            torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)
    _check_rows(model, cache, texts)


def test_all_positions_of_a_ragged_batch(model: GPT2) -> None:
    texts = [_ids(model, count, count) for count in (3, 11, 6)]
    cache, padded = model.new_cache(rows=3), torch.zeros(3, 11, dtype=torch.long)
    for n, text in enumerate(texts):
        padded[n, : len(text)] = torch.tensor(text)
    found = model.forward(padded, cache, [3, 11, 6], all_positions=True)
    for n, text in enumerate(texts):
        alone = model.forward(torch.tensor([text]), model.new_cache(), all_positions=True)[0]
        torch.testing.assert_close(found[n, : len(text)], alone, rtol=0, atol=TOLERANCE)


def test_padding_does_not_matter(model: GPT2) -> None:
    """Not even what a token would do that stands beyond the last position."""
    texts = [_ids(model, 47, 1), _ids(model, 40, 2)]
    caches = [model.new_cache(rows=2) for _ in range(2)]
    found = []
    for cache, filler in zip(caches, (0, 9), strict=True):
        padded = torch.full((2, 47), filler)
        padded[0], padded[1, :40] = torch.tensor(texts[0]), torch.tensor(texts[1])
        model.forward(padded, cache, [47, 40])
        found.append(model.forward(torch.tensor([[3, filler], [4, 5]]), cache, [1, 2]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0][1], _alone(model, [*texts[1], 4, 5]), rtol=0, atol=TOLERANCE)


def test_truncate_then_append(model: GPT2) -> None:
    """What was forgotten must not be seen, though it still lies in the buffers."""
    text, cache = _ids(model, 20, 1), model.new_cache()
    _append(model, cache, [text])
    cache.truncate(8)
    _check_rows(model, cache, [text[:8]])
    cache.truncate(100)
    assert cache.lengths == [9]
    cache.truncate(0)
    _check_rows(model, cache, [[]])


def test_truncate_leaves_shorter_rows_alone(model: GPT2) -> None:
    texts = [_ids(model, count, count) for count in (4, 15)]
    cache = model.new_cache(rows=2)
    _append(model, cache, texts)
    cache.truncate(10)
    _check_rows(model, cache, [texts[0], texts[1][:10]])


def test_expand_is_a_copy(model: GPT2) -> None:
    """The prompt's own cache stays as it is when the sequences of -n grow."""
    text, cache = _ids(model, 9, 1), model.new_cache()
    _append(model, cache, [text])
    copy = cache.expand(3)
    _append(model, copy, [[1], [2], [3]])
    _check_rows(model, copy, [[*text, 1], [*text, 2], [*text, 3]])
    _check_rows(model, cache, [text])


@pytest.mark.parametrize("rows", [[0], [2, 0], [1, 1, 2], [0, 1, 2]], ids=str)
def test_select_is_a_copy(model: GPT2, rows: list[int]) -> None:
    texts = [_ids(model, count, count) for count in (3, 8, 5)]
    cache = model.new_cache(rows=3)
    _append(model, cache, texts)
    chosen = cache.select(rows)
    assert chosen.rows == len(rows)
    _check_rows(model, chosen, [texts[row] for row in rows])
    _check_rows(model, cache, texts)


def test_row_is_a_view(model: GPT2) -> None:
    """What is computed through it is in the batch, once the batch is told the length."""
    texts = [_ids(model, count, count) for count in (3, 8)]
    cache = model.new_cache(rows=2, capacity=32)
    _append(model, cache, texts)
    view, other = cache.row(0), _ids(model, 6, 99)
    view.truncate(0)
    _append(model, view, [other])
    assert cache.lengths == [3, 8] and view.lengths == [6]
    cache.lengths[0] = 6
    _check_rows(model, cache, [other, texts[1]])


def test_reserve_grows_by_doubling_up_to_the_positions(model: GPT2) -> None:
    text, cache = _ids(model, 5, 1), model.new_cache(capacity=5)
    _append(model, cache, [text])
    assert cache.capacity == 5
    cache.reserve(5)
    assert cache.capacity == 5
    cache.reserve(6)
    assert cache.capacity == 10
    cache.reserve(31)
    assert cache.capacity == 31
    cache.reserve(32)
    assert cache.capacity == 48
    _check_rows(model, cache, [text])
    with pytest.raises(ValueError, match="49 tokens are more than the model's 48 positions"):
        cache.reserve(49)


def test_more_tokens_than_positions(model: GPT2) -> None:
    cache = model.new_cache()
    _append(model, cache, [_ids(model, 48, 1)])
    with pytest.raises(ValueError, match="positions"):
        model.forward(torch.tensor([[1]]), cache)
    assert cache.lengths == [48]


def test_a_full_context(model: GPT2) -> None:
    text, cache = _ids(model, 48, 1), model.new_cache(capacity=1)
    for token in text:
        found = model.forward(torch.tensor([[token]]), cache)
    torch.testing.assert_close(found[0], _alone(model, text), rtol=0, atol=TOLERANCE)


def test_capacity_is_at_least_one_token_and_at_most_the_positions(model: GPT2) -> None:
    assert model.new_cache(capacity=0).capacity == 1
    assert model.new_cache(capacity=10_000).capacity == 48


@settings(max_examples=150)
@given(st.data())
def test_any_history(model: GPT2, data: st.DataObject) -> None:
    """Appending, forgetting, choosing and copying rows in any order leaves each row as if alone."""
    rows = data.draw(st.integers(1, 3), label="rows")
    cache, texts = model.new_cache(rows, capacity=data.draw(st.integers(1, 8))), [[] for _ in range(rows)]
    for step in range(data.draw(st.integers(1, 6), label="steps")):
        room = model.config.n_positions - 1 - max(len(text) for text in texts)
        what = data.draw(st.sampled_from(["append", "append", "truncate", "select", "expand"]))
        if what == "append" and room > 0:
            counts = data.draw(
                st.lists(st.integers(0, min(room, 9)), min_size=len(texts), max_size=len(texts))
            )
            more = [_ids(model, count, 100 * step + n) for n, count in enumerate(counts)]
            if any(more):
                _append(model, cache, more)
                texts = [text + new for text, new in zip(texts, more, strict=True)]
        elif what == "truncate":
            kept = data.draw(st.integers(0, 20))
            cache.truncate(kept)
            texts = [text[:kept] for text in texts]
        elif what == "select":
            chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
            cache, texts = cache.select(chosen), [texts[row] for row in chosen]
        elif what == "expand" and len(texts) == 1:
            cache, texts = cache.expand(3), texts * 3
    _check_rows(model, cache, texts)


def test_the_observer_of_a_ragged_pass_sees_weights_that_sum_to_one(tmp_path: Path) -> None:
    model = Engine.load(make_model(tmp_path, tokenizer=None)).model
    cache, seen = model.new_cache(rows=2), {}
    model.forward(torch.tensor([[1, 2, 3], [4, 0, 0]]), cache, [3, 1], observe=seen.__setitem__)
    weights = seen["h.1.attn.weights"]
    assert weights.shape == (2, 4, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3))
    assert bool((weights[0].triu(1) == 0).all()) and bool((weights[1, :, 0, 1:] == 0).all())
