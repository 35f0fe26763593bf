"""The torch model over flat batches: whatever was done to a slot, a text continues as it would alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import load_torch, make_model, text_logits
from torch import Tensor

from gpt2cli.core.backend import Batch
from gpt2cli.core.cuda_graph import Pool
from gpt2cli.core.torch_gpt2 import Slots, TorchBackend, TorchGPT2, choose_device, spans_of
from gpt2cli.core.torch_model import whole_texts
from gpt2cli.errors import UsageError

TOLERANCE = 1e-5
CONTEXT = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TorchGPT2:
    """Small logits (about 1), so that an absolute tolerance means the same in every row."""
    directory = make_model(tmp_path_factory.mktemp("slots"), tokenizer=None, std=0.2, n_positions=CONTEXT)
    found: TorchGPT2 = load_torch(directory)
    return found


@pytest.fixture(params=["slots", "pool"])
def slots(request: pytest.FixtureRequest, model: TorchGPT2) -> Slots:
    """Those of a CPU, and the pool of CUDA, which lies on any device."""
    return model.new_slots() if request.param == "slots" else Pool(model.config, model.device)


def _ids(tokens: int, seed: int) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(257) for _ in range(tokens)]


def _alone(model: TorchGPT2, ids: Sequence[int]) -> Tensor:
    """The logits after ``ids``, [V], of a text that is read by itself."""
    return text_logits(model, ids)[0][-1]


def _append(model: TorchGPT2, slots: Slots, parts: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
    """The logits after each part, [B, V]."""
    batch = Batch.of(parts)
    return model.logits(model.hidden_states(batch, slots)[batch.wanted.tolist()])


def _check(model: TorchGPT2, slots: Slots, texts: dict[int, list[int]]) -> None:
    """One token more for each slot gives what the whole text gives alone."""
    found = _append(model, slots, [(slot, len(text), [7 + slot]) for slot, text in texts.items()])
    for row, (slot, text) in zip(found, texts.items(), strict=True):
        torch.testing.assert_close(row, _alone(model, [*text, 7 + slot]), rtol=0, atol=TOLERANCE)


class TestBatches:
    @pytest.mark.parametrize("counts", [[1, 1], [5, 5, 5], [1, 9, 4], [12, 1], [3, 3, 8, 8, 3]], ids=str)
    def test_texts_of_any_length(self, model: TorchGPT2, slots: Slots, counts: list[int]) -> None:
        texts = [_ids(count, n) for n, count in enumerate(counts)]
        places = [slots.new() for _ in texts]
        parts = [(slot, 0, text) for slot, text in zip(places, texts, strict=True)]
        for row, text in zip(_append(model, slots, parts), texts, strict=True):
            torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)
        _check(model, slots, dict(zip(places, texts, strict=True)))

    @pytest.mark.parametrize("then", [[1, 1, 1], [4, 4, 4], [6, 1, 3]], ids=str)
    @pytest.mark.parametrize("first", [[4, 4, 4], [2, 9, 5]], ids=str)
    def test_on_top_of_each_other(
        self, model: TorchGPT2, slots: Slots, first: list[int], then: list[int]
    ) -> None:
        """New tokens see what is in their slot, and nothing of another."""
        texts = [_ids(count, n) for n, count in enumerate(first)]
        places = [slots.new() for _ in texts]
        _append(model, slots, [(slot, 0, text) for slot, text in zip(places, texts, strict=True)])
        more = [_ids(count, 10 + n) for n, count in enumerate(then)]
        parts = [(slot, len(text), new) for slot, text, new in zip(places, texts, more, strict=True)]
        found = _append(model, slots, parts)
        texts = [text + new for text, new in zip(texts, more, strict=True)]
        for row, text in zip(found, texts, strict=True):
            torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)
        _check(model, slots, dict(zip(places, texts, strict=True)))

    def test_a_prompt_beside_running_texts(self, model: TorchGPT2, slots: Slots) -> None:
        running, fresh = _ids(20, 1), _ids(9, 2)
        one, two = slots.new(), slots.new()
        _append(model, slots, [(one, 0, running)])
        found = _append(model, slots, [(one, 20, [5]), (two, 0, fresh)])
        for row, text in zip(found, ([*running, 5], fresh), strict=True):
            torch.testing.assert_close(row, _alone(model, text), rtol=0, atol=TOLERANCE)

    def test_chunks_of_any_size(self, model: TorchGPT2, slots: Slots) -> None:
        text = _ids(CONTEXT, 3)
        (whole,) = text_logits(model, text)
        for size in (1, 7, 47, 48):
            slot = slots.new()
            for at in range(0, CONTEXT, size):
                row = _append(model, slots, [(slot, at, text[at : at + size])])[0]
                expected = whole[min(at + size, CONTEXT) - 1]
                torch.testing.assert_close(row, expected, rtol=0, atol=TOLERANCE)
            slots.free(slot)

    def test_nothing_is_kept_without_slots(self, model: TorchGPT2) -> None:
        with pytest.raises(ValueError, match="begins with its first token"):
            model.hidden_states(Batch.of([(0, 3, [1, 2])]))

    def test_texts_of_one_length_are_attended_at_once(self) -> None:
        spans = spans_of(whole_texts([[1] * n for n in (5, 5, 3, 3, 3, 1, 2)]))
        assert [(g.begin, g.tokens, len(g.slots)) for g in spans] == [
            (0, 5, 2), (10, 3, 3), (19, 1, 1), (20, 2, 1)
        ]  # fmt: skip
        running = spans_of(Batch.of([(4, 7, [1]), (2, 7, [1]), (9, 0, [1]), (3, 0, [1])]))
        assert [(g.slots, g.present) for g in running] == [([4], 7), ([2], 7), ([9, 3], 0)]


class TestSlots:
    def test_a_rewind(self, model: TorchGPT2, slots: Slots) -> None:
        """What was forgotten must not be seen, though it still lies in the buffers."""
        text, slot = _ids(20, 1), slots.new()
        _append(model, slots, [(slot, 0, text)])
        _check(model, slots, {slot: text[:8]})
        _check(model, slots, {slot: text[:3]})
        other = _ids(5, 9)
        _append(model, slots, [(slot, 0, other)])
        _check(model, slots, {slot: other})

    def test_a_copy_is_a_copy(self, model: TorchGPT2, slots: Slots) -> None:
        """The prompt's own slot stays as it is when its forks grow."""
        text, prompt = _ids(20, 1), slots.new()
        _append(model, slots, [(prompt, 0, text)])
        forks = [slots.new() for _ in range(3)]
        for fork, tokens in zip(forks, (20, 20, 4), strict=True):
            slots.copy(prompt, fork, tokens)
        _append(model, slots, [(forks[0], 20, [1, 2]), (forks[1], 20, [3]), (forks[2], 4, [4])])
        _check(
            model,
            slots,
            {forks[0]: [*text, 1, 2], forks[1]: [*text, 3], forks[2]: [*text[:4], 4], prompt: text},
        )

    def test_a_copy_over_a_longer_text(self, model: TorchGPT2, slots: Slots) -> None:
        text, other = _ids(6, 1), _ids(40, 2)
        source, target = slots.new(), slots.new()
        _append(model, slots, [(source, 0, text), (target, 0, other)])
        slots.copy(source, target, 6)
        _check(model, slots, {source: text, target: text})

    def test_freed_slots(self, model: TorchGPT2, slots: Slots) -> None:
        """Others keep what they have; a new one has nothing of the old."""
        text, first, second = _ids(11, 1), slots.new(), slots.new()
        _append(model, slots, [(first, 0, text), (second, 0, _ids(30, 2))])
        slots.free(second)
        third = slots.new()
        _append(model, slots, [(third, 0, [9])])
        _check(model, slots, {first: text, third: [9]})

    def test_many_slots(self, model: TorchGPT2, slots: Slots) -> None:
        texts = {slots.new(): _ids(1 + n % 5, n) for n in range(30)}
        assert len(texts) == 30
        _append(model, slots, [(slot, 0, text) for slot, text in texts.items()])
        _check(model, slots, texts)

    def test_memory_grows_with_the_tokens(self, model: TorchGPT2) -> None:
        """An empty slot takes none, and a full one no more than the context."""
        slots = Slots(model.config, model.device)
        slot = slots.new()
        assert slots.buffer(slot).numel() == 0
        big = type(model.config)(n_positions=1024, n_embd=32, n_layer=2, n_head=4)
        slots = Slots(big, model.device)
        slot, seen = slots.new(), set()
        for tokens in range(1, 1025):
            slots.reserve(slot, tokens, tokens - 1)
            capacity = slots.buffer(slot).shape[3]
            assert tokens <= capacity <= min(2 * tokens + 64, 1024)
            seen.add(capacity)
        assert len(seen) <= 6

    def test_a_slot_that_does_not_hold_what_comes_before(self, model: TorchGPT2) -> None:
        slots = model.new_slots()
        with pytest.raises(ValueError, match="does not hold 5 tokens"):
            _append(model, slots, [(slots.new(), 5, [1])])

    @settings(max_examples=150)
    @given(st.data())
    def test_any_history(self, model: TorchGPT2, data: st.DataObject) -> None:
        """Appending, rewinding, copying and freeing in any order leaves each text as if alone."""
        slots = data.draw(st.sampled_from([model.new_slots(), Pool(model.config, model.device)]))
        texts: dict[int, list[int]] = {slots.new(): []}
        for step in range(data.draw(st.integers(1, 6), label="steps")):
            what = data.draw(st.sampled_from(["append", "append", "rewind", "copy", "free", "new"]))
            chosen = data.draw(st.lists(st.sampled_from([*texts]), min_size=1, max_size=4, unique=True))
            if what == "append":
                parts = []
                for slot in chosen:
                    count = data.draw(st.integers(0, min(9, CONTEXT - 1 - len(texts[slot]))))
                    if count:
                        parts.append((slot, len(texts[slot]), _ids(count, 100 * step + slot)))
                if parts:
                    _append(model, slots, parts)
                for slot, _, ids in parts:
                    texts[slot] = [*texts[slot], *ids]
            elif what == "rewind":
                texts[chosen[0]] = texts[chosen[0]][: data.draw(st.integers(0, 20))]
            elif what == "copy":
                target = chosen[-1] if len(chosen) > 1 else slots.new()
                kept = data.draw(st.integers(0, len(texts[chosen[0]])))
                slots.copy(chosen[0], target, kept)
                texts[target] = texts[chosen[0]][:kept]
            elif what == "free" and len(texts) > 1:
                slots.free(chosen[0])
                del texts[chosen[0]]
            else:
                texts[slots.new()] = []
        _check(model, slots, texts)


class TestObserver:
    def test_weights_sum_to_one_and_see_only_what_is_before(self, model: TorchGPT2) -> None:
        seen: list[Tensor] = []

        def observe(stage: str, tensor: Tensor) -> None:
            if stage == "h.1.attn.weights":
                seen.append(tensor)
            assert "h.0.attn.weights" not in stage

        slots = model.new_slots()
        one, two = slots.new(), slots.new()
        model.hidden_states(Batch.of([(one, 0, [1, 2]), (two, 0, [3, 4])]), slots)
        batch = Batch.of([(one, 2, [5, 6, 7]), (two, 2, [8])])
        model.hidden_states(batch, slots, observe=observe, attention=[1])
        assert [tuple(weights.shape) for weights in seen] == [(4, 3, 5), (4, 1, 3)]
        for weights in seen:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert not seen[0][:, 0, 3:].any() and not seen[0][:, 1, 4:].any()

    def test_looking_changes_nothing(self, model: TorchGPT2) -> None:
        batch = whole_texts([_ids(9, 1), _ids(9, 2), _ids(3, 3)])
        stages: dict[str, int] = {}

        def observe(stage: str, tensor: Tensor) -> None:
            stages[stage] = stages.get(stage, 0) + 1
            tensor.isfinite()

        plain = model.hidden_states(batch)
        assert torch.equal(model.hidden_states(batch, observe=observe, attention=[0, 1]), plain)
        assert stages.pop("h.0.attn.weights") == stages.pop("h.1.attn.weights") == 3
        assert set(stages.values()) == {1} and "embeddings" in stages and "ln_f" in stages


class TestBackend:
    def test_forward(self, model: TorchGPT2) -> None:
        """Logits after the wanted tokens alone, which the caller may change."""
        backend = TorchBackend(model)
        one, two = backend.new_slot(), backend.new_slot()
        texts = [_ids(7, 1), _ids(4, 2)]
        expected = torch.cat(text_logits(model, *texts)).numpy()
        batch = Batch.of([(one, 0, texts[0]), (two, 0, texts[1])], wanted=[2, 6, 7])
        found = backend.forward(batch)
        assert (found.dtype, found.shape) == (np.float32, (3, 257))
        np.testing.assert_allclose(found, expected[[2, 6, 7]], rtol=0, atol=TOLERANCE)
        found[:] = 0
        assert backend.forward(Batch.of([(one, 0, texts[0])], wanted=[])).shape == (0, 257)
        backend.copy_slot(one, two, 5)
        found = backend.forward(Batch.of([(two, 5, texts[0][5:])]))
        np.testing.assert_allclose(found, expected[[6]], rtol=0, atol=TOLERANCE)
        backend.free_slot(two)

    def test_what_a_token_takes(self, model: TorchGPT2) -> None:
        backend, slots = TorchBackend(model), model.new_slots()
        slot = slots.new()
        slots.reserve(slot, CONTEXT, 0)
        assert backend.bytes_per_token == slots.buffer(slot).nbytes // CONTEXT

    def test_closed(self, tmp_path: Path) -> None:
        backend = TorchBackend(load_torch(make_model(tmp_path)))
        assert backend.info.device == "cpu"
        backend.close()
        backend.close()
        with pytest.raises(ValueError, match="closed"):
            backend.forward(Batch.of([(0, 0, [1])]))


def test_defaults_of_the_program_around_it_change_nothing(model: TorchGPT2) -> None:
    """Of torch, which is the user's: what is computed is of the model's device and type."""
    slots, ids = model.new_slots(), _ids(20, 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            slot = slots.new()
            parts = [_append(model, slots, [(slot, at, ids[at : at + 10])]) for at in (0, 10)]
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(parts[-1][0], _alone(model, ids), rtol=0, atol=TOLERANCE)


def test_long_texts_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_model(tmp_path, n_positions=1024, n_embd=64, std=0.2)
    model, ids = load_torch(directory), torch.randint(0, 257, (2, 900)).tolist()
    with torch.no_grad():
        wanted = transformers.GPT2LMHeadModel.from_pretrained(directory)(torch.tensor(ids)).logits
    assert torch.allclose(torch.stack(text_logits(model, *ids)), wanted, atol=1e-4)
    slots = model.new_slots()
    places = [slots.new(), slots.new()]
    for begin, end in ((0, 300), (300, 800), (800, 900)):
        found = _append(
            model, slots, [(slot, begin, row[begin:end]) for slot, row in zip(places, ids, strict=True)]
        )
        assert torch.allclose(found, wanted[:, end - 1], atol=1e-4)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda", "mps"):
        there = torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()
        if not there:
            with pytest.raises(UsageError, match=f"--device {name}"):
                choose_device(name)  # type: ignore[arg-type]
