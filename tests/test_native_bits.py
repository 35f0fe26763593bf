"""The native backend's logits are the same to the last bit, however a text is read and whoever computes.

Expected is always what the best instruction set of this machine gives with one thread for a text that is read
alone and in one pass. That this is also right, `test_parity.py` and others say.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from native_models import (
    CONTEXTS,
    HEAD_WIDTHS,
    INNER_WIDTHS,
    PRECISIONS,
    VOCABULARIES,
    bits,
    check_script,
    in_chunks,
    instruction_sets,
    needs_native,
    open_native,
    random_config,
    random_ids,
    random_model,
    random_script,
    whole,
)
from safetensors.torch import load_file, save_file
from support import make_model, series, shared, some_slow

import gpt2cli
from gpt2cli.checkpoint import ACTIVATIONS
from gpt2cli.core.backend import Batch, Floats
from gpt2cli.core.native import backend as backend_module
from gpt2cli.core.native.backend import NativeBackend
from gpt2cli.core.quantise import Kind

pytestmark = needs_native

MODELS, FAST = series(35, 17), 14
LONGEST = 320
"""Tokens of a text for a trained model: two blocks of 256 places, five of 64."""
CHUNKS = (1, 7, 64, 512)
SLOW_TO_RUN = "portable"
"""Its fused multiply-add is a call of the C library where the processor has none."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model in a precision, and a text as long as its context, or nearly."""

    directory: Path
    precision: Kind
    backend: NativeBackend
    ids: list[int]
    expected: Floats
    """[T, V]"""
    seed: str

    @property
    def vocab(self) -> int:
        return self.backend.config.vocab_size

    @property
    def context(self) -> int:
        return len(self.ids)

    def random(self) -> random.Random:
        return random.Random(self.seed)

    def same(self, logits: Floats, first: int = 0) -> bool:
        """Whether [n, V] are the logits at ``first`` and the places after it."""
        return np.array_equal(bits(logits), bits(self.expected[first : first + len(logits)]))


TRAINED = ("tiny", "slm_4096_kunal", "makemore_names_lmj9", "llmviz_gpt_nano_sort", "capp_gpt")
"""Their weights, and so their activations, are of very different sizes."""


def _each_first_in_one(models: Iterable[int | str]) -> list[tuple[int | str, Kind]]:
    """All models in all precisions, a turn of each model before the second one of any."""
    turns = range(len(PRECISIONS))
    return [
        (model, PRECISIONS[(at + at // len(turns) + turn) % len(turns)])
        for turn in turns
        for at, model in enumerate(models)
    ]


def _trained(name: str) -> Path:
    if name == "tiny":
        return Path(gpt2cli.__file__).parent / "builtin"
    return shared("models", name) if name == "capp_gpt" else shared("models", name, "hf")


@pytest.fixture(
    scope="module",
    params=[
        *some_slow(_each_first_in_one(range(MODELS)), FAST),
        *some_slow(_each_first_in_one(TRAINED), len(TRAINED)),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, precision = request.param
    if isinstance(name, int):
        directory, longest = random_model(tmp_path_factory.mktemp("model"), name), max(CONTEXTS)
    else:
        directory, longest = _trained(name), LONGEST
    backend, seed = open_native(directory, precision), f"{name} {precision}"
    config = backend.config
    ids = random_ids(random.Random(seed), config.vocab_size, min(config.n_positions, longest))
    expected = whole(backend, ids)
    assert np.isfinite(expected).all() and expected.std() > 0
    yield Case(directory, precision, backend, ids, expected, seed)
    backend.close()


def test_the_models_cover_every_variant() -> None:
    """A generator that never sets a switch proves nothing about it; the fast models have all widths, too."""
    for count in (FAST, MODELS):
        configs = [random_config(number) for number in range(count)]
        assert {c["n_embd"] // c["n_head"] for c in configs} == {*HEAD_WIDTHS}
        assert {c["n_positions"] for c in configs} == {*CONTEXTS}
        assert {c["activation_function"] for c in configs} == {*ACTIVATIONS}
        for key in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            assert {c[key] for c in configs} == {True, False}
    assert {c["vocab_size"] for c in configs} == {*VOCABULARIES}
    assert {c["n_inner"] for c in configs} == {*INNER_WIDTHS}
    assert {c["n_layer"] for c in configs} == {1, 2, 3}


@pytest.mark.parametrize("size", CHUNKS)
def test_in_chunks(case: Case, size: int) -> None:
    # Of a long context the end is enough, where sums run over several blocks of positions.
    start = max(0, case.context - 320) if size == 1 else 0
    slot = case.backend.new_slot()
    if start:
        case.backend.forward(Batch.of([(slot, 0, case.ids[:start])]))
    for at in range(start, case.context, size):
        part = case.ids[at : at + size]
        assert case.same(case.backend.forward(Batch.of([(slot, at, part)], range(len(part)))), at), at
    case.backend.free_slot(slot)


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 8, 9])
def test_beside_others(case: Case, rows: int) -> None:
    """A step of several rows, each in a text of its own and at a place of its own; the first is ours."""
    backend, pick = case.backend, case.random()
    place = pick.randrange(case.context)
    slots = [backend.new_slot() for _ in range(rows)]
    places = [place, *(pick.randrange(case.context) for _ in slots[1:])]
    texts = [case.ids, *(random_ids(pick, case.vocab, case.context) for _ in slots[1:])]
    rest = [*zip(slots, places, texts, strict=True)]
    before = [(slot, 0, text[:at]) for slot, at, text in rest if at]
    for start in range(0, len(before), 2):
        backend.forward(Batch.of(before[start : start + 2]))
    pick.shuffle(rest)
    logits = backend.forward(Batch.of([(slot, at, [text[at]]) for slot, at, text in rest]))
    ours = next(n for n, (slot, *_) in enumerate(rest) if slot == slots[0])
    assert case.same(logits[ours : ours + 1], place)
    for slot in slots:
        backend.free_slot(slot)


def test_after_a_rewind(case: Case) -> None:
    """What stood at and after the place that is gone back to leaves no trace, nor does it in another slot."""
    backend, pick = case.backend, case.random()
    slot = backend.new_slot()
    backend.forward(Batch.of([(slot, 0, random_ids(pick, case.vocab, case.context))]))
    start = 0
    while start < case.context:
        end = min(case.context, start + pick.choice([1, 5, 63, 200]))
        part = case.ids[start:end]
        assert case.same(backend.forward(Batch.of([(slot, start, part)], range(len(part)))), start)
        if end < case.context:
            backend.forward(Batch.of([(slot, end, random_ids(pick, case.vocab, case.context - end))]))
            start = max(start + 1, end - pick.randint(0, 3))
        else:
            start = end
    backend.free_slot(slot)


def test_after_a_fork(case: Case) -> None:
    backend, pick = case.backend, case.random()
    first, wrong = backend.new_slot(), backend.new_slot()
    backend.forward(Batch.of([(wrong, 0, random_ids(pick, case.vocab, case.context))]))
    backend.forward(Batch.of([(first, 0, case.ids)]))
    for place in {0, 1, case.context // 2, case.context - 1}:
        # Into a slot that held another text before, and now holds a part of ours.
        backend.copy_slot(first, wrong, place)
        part = case.ids[place:]
        assert case.same(backend.forward(Batch.of([(wrong, place, part)], range(len(part)))), place)
        assert case.same(backend.forward(Batch.of([(first, place, part)], range(len(part)))), place)
        backend.forward(Batch.of([(wrong, 0, random_ids(pick, case.vocab, case.context))]))
    backend.free_slot(first)
    backend.free_slot(wrong)


def test_whatever_is_wanted(case: Case) -> None:
    """The last layer computes only the rows that are asked for."""
    slot = case.backend.new_slot()
    for share in (0.0, 0.1, 0.9):
        pick = case.random()
        wanted = [at for at in range(case.context) if pick.random() < share]
        found = case.backend.forward(Batch.of([(slot, 0, case.ids)], wanted))
        assert np.array_equal(bits(found), bits(case.expected[wanted]))
    case.backend.free_slot(slot)


def test_more_tokens_than_one_call_takes(case: Case) -> None:
    """The library takes 1,024 at a time; a batch of Python's may have any number."""
    copies = 1 + 2100 // case.context if case.context > 100 else 3
    slots = [case.backend.new_slot() for _ in range(copies)]
    batch = Batch.of([(slot, 0, case.ids) for slot in slots], range(copies * case.context))
    found = case.backend.forward(batch).reshape(copies, case.context, -1)
    assert all(case.same(logits) for logits in found)
    for slot in slots:
        case.backend.free_slot(slot)


def _processors() -> list[object]:
    """Instruction sets and threads; in the fast run one number of threads is enough but for the best set."""
    pairs = [(instructions, threads) for instructions in instruction_sets() for threads in (1, 2, 3)]
    fast = [(each, threads) for each, threads in pairs if threads == 2 or each == instruction_sets()[0]]
    return [*fast, *(pytest.param(pair, marks=pytest.mark.slow) for pair in pairs if pair not in fast)]


@pytest.mark.parametrize("processor", _processors(), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_everywhere(case: Case, processor: tuple[str, int]) -> None:
    """Texts side by side, in chunks, rewound and forked, in one script; by each processor and its threads."""
    instructions, threads = processor
    few = instructions == SLOW_TO_RUN and case.context > 100
    script = random_script(case.seed, case.vocab, case.context, passes=3 if few else 12)
    expected = [whole(case.backend, ids) for ids in script.texts]
    other = open_native(case.directory, case.precision, threads=threads, instructions=instructions)
    check_script(other, script, expected, f"{instructions}, {threads} threads")
    other.close()


def test_wherever_matrices_lie(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model's head is multiplied where it lies in the checkpoint; that of these is turned."""
    monkeypatch.setattr(backend_module, "WORTH_KEEPING", 0)
    for instructions in instruction_sets():
        if instructions != SLOW_TO_RUN or case.context < 100:
            other = open_native(case.directory, case.precision, instructions=instructions)
            assert case.same(in_chunks(other, case.ids, 200)), instructions
            assert case.same(in_chunks(other, case.ids[:20], 1)), instructions
            other.close()


def _scaled(directory: Path, name: str, columns: slice, factor: float) -> Path:
    """A random model, some of whose columns of one matrix are much larger."""
    path = make_model(directory, tokenizer=None) / "model.safetensors"
    tensors = load_file(path)
    tensors[f"transformer.{name}"][:, columns] *= factor
    save_file(tensors, path, {"format": "pt"})
    return directory


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_value_that_does_not_fit_fp16(tmp_path: Path, precision: Kind) -> None:
    """Infinite in the cache, it would be no number for the tokens before it that are computed beside it."""
    directory = _scaled(tmp_path, "h.1.attn.c_attn.weight", slice(64, 96), 3e4)
    backend, ids = open_native(directory, precision), random_ids(random.Random(3), 257, 64)
    expected = whole(backend, ids)
    assert np.isfinite(expected).all()
    assert np.array_equal(bits(in_chunks(backend, ids, 1)), bits(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_overflows_is_not_hidden(tmp_path: Path, precision: Kind) -> None:
    """Rounded to 8 bits an infinite activation was a number again; logits that are none are refused."""
    directory = _scaled(tmp_path, "h.0.mlp.c_fc.weight", slice(None), 1e38)
    assert not np.isfinite(whole(open_native(directory, precision), [1, 2, 3])).any()
