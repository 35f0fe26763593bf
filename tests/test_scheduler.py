"""From ids to ids: rows that join, fork, slide and leave, against their plain definitions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy_gpt2 import NumpyBackend
from support import BACKENDS, load_on, make_model

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core import scheduler as module
from gpt2cli.core.backend import Backend, Batch, Floats
from gpt2cli.core.results import Chunk
from gpt2cli.core.sampling import Sampler
from gpt2cli.core.scheduler import Scheduler
from gpt2cli.core.sequence import Group
from gpt2cli.options import GenerateOptions

CONTEXT = 16
SLIDING = GenerateOptions(seed=0, overflow="slide", top_k=0)


def _backend(directory: Path, n_positions: int = CONTEXT) -> NumpyBackend:
    return NumpyBackend(
        open_checkpoint(make_model(directory, tokenizer=None, n_positions=n_positions, std=0.2))
    )


@pytest.fixture(scope="module")
def shared_backend(tmp_path_factory: pytest.TempPathFactory) -> NumpyBackend:
    return _backend(tmp_path_factory.mktemp("scheduler"))


@pytest.fixture
def backend(shared_backend: NumpyBackend) -> NumpyBackend:
    """Every slot that a test takes must be free at its end."""
    shared_backend.slots.clear()
    shared_backend.passes.clear()
    return shared_backend


def _group(
    prompt: Sequence[int],
    options: GenerateOptions,
    new: int,
    *,
    eos: Sequence[int] = (),
    dropped: int = 0,
) -> Group:
    return Group([*prompt], options, max_new_tokens=new, eos_ids=frozenset(eos), dropped=dropped)


def _new(group: Group) -> list[list[int]]:
    """The tokens that were generated, of each sequence."""
    return [sequence.ids[len(group.prompt) :] for sequence in group.sequences]


def _run(backend: Backend, *groups: Group) -> list[Chunk]:
    """Run groups, each as a request of its own; the chunks of all."""
    scheduler = Scheduler(backend)
    for group in groups:
        scheduler.admit([group])
    return [chunk for step in scheduler.run() if step is not None for chunk in step.chunks]


def _logits(backend: Backend, ids: Sequence[int]) -> Floats:
    slot = backend.new_slot()
    (logits,) = backend.forward(Batch.of([(slot, 0, ids)]))
    backend.free_slot(slot)
    row: Floats = logits
    return row


def _by_definition(backend: Backend, group: Group) -> list[list[int]]:
    """Every token from a forward pass over the whole window; the window as the house describes it."""
    texts, context = [], backend.config.n_positions
    for seed in group.options.seeds:
        ids, window = list(group.prompt), 0
        for _ in range(group.max_new_tokens):
            if len(ids) - window > context:
                window += max(1, context // 4)
            logits = _logits(backend, ids[window:])
            ids.append(Sampler(group.options)(logits, ids, seed, group.dropped + len(ids)))
        texts.append(ids[len(group.prompt) :])
    return texts


OPTIONS = {
    "sampled": replace(SLIDING, seed=5, num_return_sequences=3),
    "filtered": replace(SLIDING, seed=9, temperature=0.7, top_k=20, repetition_penalty=1.3),
    "greedy": replace(SLIDING, temperature=0),
}


class TestSliding:
    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("n_positions", [1, 2, 3, 5, 16])
    def test_by_definition(self, tmp_path: Path, n_positions: int, name: str) -> None:
        """The window moves by quarters; the noise goes on as if it had not moved."""
        backend = _backend(tmp_path, n_positions)
        group = _group([3, 1, 4][:n_positions], OPTIONS[name], 50, dropped=1000)
        _run(backend, group)
        assert _new(group) == _by_definition(backend, group)
        for sequence in group.sequences:
            assert sequence.position == 1000 + len(group.prompt) + 50
            assert 0 <= len(sequence.ids) - 1 - sequence.window <= n_positions
            assert sequence.window % max(1, n_positions // 4) == 0
            assert sequence.finish_reason == "length"
        assert not backend.slots

    def test_rows_of_unequal_length(self, backend: NumpyBackend) -> None:
        """Each row slides when it is full itself, and the others must not notice."""
        prompts = [[1, 2, 3], [*range(20, 34)], [7] * 8]
        groups = [_group(prompt, replace(SLIDING, seed=n), 40) for n, prompt in enumerate(prompts)]
        expected = [_by_definition(backend, group) for group in groups]
        _run(backend, *groups)
        assert [_new(group) for group in groups] == expected

    @pytest.mark.parametrize("chunk", [2, 5])
    def test_in_chunks(self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
        """What is left of the window is read again in parts, too."""
        group = _group([1, 2, 3], replace(SLIDING, num_return_sequences=3), 40)
        expected = _by_definition(backend, group)
        monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
        _run(backend, group)
        assert _new(group) == expected


class TestPrompts:
    @pytest.mark.parametrize("name", BACKENDS)
    @pytest.mark.parametrize("chunk", [1, 3, 7, 512])
    def test_in_chunks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int) -> None:
        backend = load_on(name, make_model(tmp_path, tokenizer=None, n_positions=CONTEXT)).backend
        ids = [*range(40, 40 + CONTEXT)]
        group = _group(ids, replace(SLIDING, logprobs=5), 1)
        monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
        (found,) = [c.logprobs for c in _run(backend, group) if c.logprobs]
        logits = torch.from_numpy(_logits(backend, ids)).double().log_softmax(-1)
        expected = [(token, float(logits[token])) for token in logits.topk(5).indices.tolist()]
        assert [token for token, _ in found.top] == [token for token, _ in expected]
        assert [value for _, value in found.top] == pytest.approx([value for _, value in expected], abs=1e-5)

    def test_a_long_one_leaves_room_for_those_that_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At most so many tokens of prompts in a pass, and a token of every row that runs in each."""
        monkeypatch.setattr(module, "PREFILL_CHUNK", 8)
        backend = _backend(tmp_path, 64)
        short = [_group([n], replace(SLIDING, seed=n), 30) for n in range(3)]
        long = [_group([*range(n, n + 30)], replace(SLIDING, seed=n), 5) for n in (50, 60)]
        expected = [_by_definition(backend, group) for group in (*short, *long)]
        scheduler = Scheduler(backend)
        scheduler.admit(short)
        steps = scheduler.run()
        for _ in range(9):
            next(steps)
        scheduler.admit(long)
        backend.passes.clear()
        for _ in steps:
            pass
        assert [_new(group) for group in (*short, *long)] == expected
        reading = backend.passes[: 60 // 8]
        assert all(len(batch) <= 8 + 4 for batch in backend.passes)
        for batch in reading:
            assert len({*batch.slots.tolist()}) >= 4 and len(batch) > 8
        assert sum(len(batch) for batch in backend.passes) == 3 * 27 + 60 + 2 * 4

    def test_one_is_read_once_for_all_its_texts(self, backend: NumpyBackend) -> None:
        group = _group([*range(10)], replace(SLIDING, num_return_sequences=5), 4)
        _run(backend, group)
        assert sum(len(batch) for batch in backend.passes) == 10 + 5 * 3
        assert not backend.slots

    def test_one_new_token_needs_no_further_pass(self, backend: NumpyBackend) -> None:
        group = _group([1, 2], SLIDING, 1)
        _run(backend, group)
        assert len(_new(group)[0]) == 1 and len(backend.passes) == 1

    def test_between_their_parts_the_caller_has_a_say(
        self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PREFILL_CHUNK", 4)
        scheduler, group = Scheduler(backend), _group([*range(14)], SLIDING, 1)
        scheduler.admit([group])
        steps = scheduler.run()
        assert [next(steps) for _ in range(4)] == [None] * 4
        scheduler.drop([group])
        assert [*steps] == [] and not backend.slots


class TestScores:
    """The log-probabilities of a prompt's own tokens."""

    def _expected(self, backend: Backend, ids: Sequence[int], at: int) -> list[float]:
        row = torch.from_numpy(_logits(backend, ids[:at])).double().log_softmax(-1)
        return [float(value) for value in row]

    @pytest.mark.parametrize("chunk", [1, 3, 512])
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("new", [0, 4])
    def test_by_definition(
        self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch, chunk: int, n: int, new: int
    ) -> None:
        """Whatever the parts in which it is read, how many continue it, and what runs beside."""
        monkeypatch.setattr(module, "SCORED_CHUNK", chunk)
        ids = [*range(40, 40 + CONTEXT - new)]
        options = replace(SLIDING, overflow="error", num_return_sequences=n)
        group = Group(ids, options, max_new_tokens=new, prompt_logprobs=2)
        plain, beside = _group(ids, options, 4), _group([9], SLIDING, 20)
        alone = _by_definition(backend, beside)
        chunks = _run(backend, group, beside)
        assert [scored.logprob for scored in group.scores] == pytest.approx(
            [self._expected(backend, ids, at)[ids[at]] for at in range(1, len(ids))], abs=1e-9
        )
        for at, scored in enumerate(group.scores, 1):
            row = self._expected(backend, ids, at)
            assert scored.top[0][1] == pytest.approx(max(row), abs=1e-9) and len(scored.top) == 2
        assert [sequence.finish_reason for sequence in group.sequences] == ["length"] * n
        if new:
            _run(backend, plain)
            assert _new(plain) == _new(group)
        else:
            assert sum(chunk.token is not None for chunk in chunks) == 20
        assert _new(beside) == alone and not backend.slots


class TestBudgets:
    def test_prompts_leave_more_to_those_that_run_than_to_each_other(self, tmp_path: Path) -> None:
        """``beside`` holds while a text runs, and the whole chunk where none does."""
        backend = _backend(tmp_path, 64)
        scheduler = Scheduler(backend, beside=4)
        first, second = _group([*range(40)], SLIDING, 3), _group([*range(60, 100)], SLIDING, 5)
        expected = [_by_definition(backend, group) for group in (first, second)]
        backend.passes.clear()
        scheduler.admit([first])
        steps = scheduler.run()
        next(steps)
        scheduler.admit([second])
        for _ in steps:
            pass
        assert [_new(group) for group in (first, second)] == expected
        assert [len(batch) for batch in backend.passes][:4] == [40, 5, 5, 32]

    def test_many_that_wait_outweigh_a_few_that_run(self, tmp_path: Path) -> None:
        backend = _backend(tmp_path, 64)
        scheduler, steps_of = Scheduler(backend, beside=4), [12] * 8
        first = _group([1], SLIDING, 20)
        scheduler.admit([first])
        steps = scheduler.run()
        next(steps)
        others = [_group([*range(n, n + count)], SLIDING, 20) for n, count in enumerate(steps_of)]
        scheduler.admit(others)
        backend.passes.clear()
        for _ in steps:
            pass
        # Eight wait for one: 8 x 4 tokens of them; then six for three, 2 x 4.
        assert [len(batch) for batch in backend.passes][:4] == [33, 11, 8, 8]
        assert all(len(_new(group)[0]) == 20 for group in (first, *others))

    def test_rows(self, backend: NumpyBackend) -> None:
        scheduler = Scheduler(backend, rows=3)
        groups = [_group([n], replace(SLIDING, seed=n), 5) for n in range(9)]
        for group in groups:
            scheduler.admit([group])
        for _ in scheduler.run():
            assert isinstance(scheduler.drawing, bool)
        assert max(len(batch) for batch in backend.passes) == 3
        assert all(len(ids) == 5 for group in groups for ids in _new(group))


class TestEnds:
    def test_the_context_ends_a_text(self, backend: NumpyBackend) -> None:
        group = _group([1, 2, 3], replace(SLIDING, overflow="error", num_return_sequences=2), 100)
        _run(backend, group)
        assert [len(sequence.ids) for sequence in group.sequences] == [CONTEXT, CONTEXT]
        assert [sequence.finish_reason for sequence in group.sequences] == ["context", "context"]

    def test_length_comes_before_context(self, backend: NumpyBackend) -> None:
        """The last token allowed is also the last there is room for: it is as long as was asked."""
        group = _group([1, 2, 3], replace(SLIDING, overflow="error"), CONTEXT - 3)
        _run(backend, group)
        assert group.sequences[0].finish_reason == "length"

    def test_a_row_that_ends_leaves_the_others_as_they_were(self, backend: NumpyBackend) -> None:
        """eos in one row; the rest go on with their own keys and noise."""
        options = replace(SLIDING, num_return_sequences=6)
        free = _group([9], options, 30)
        _run(backend, free)
        whole = _new(free)
        eos = {whole[1][3], whole[4][10]}
        group = _group([9], options, 30, eos=[*eos])
        chunks = _run(backend, group)
        for sequence, full in zip(group.sequences, whole, strict=True):
            end = next((at for at, token in enumerate(full) if token in eos), None)
            assert _new(group)[sequence.index] == full[:end]
            assert sequence.finish_reason == ("length" if end is None else "eos")
            own = [chunk for chunk in chunks if chunk.sequence == sequence.index]
            assert [chunk.token for chunk in own] == [*full[:end], None]
            assert own[-1].finish_reason == sequence.finish_reason
        assert len({len(sequence.ids) for sequence in group.sequences}) > 2
        assert not backend.slots

    def test_every_sequence_has_one_step_in_each_round(self, backend: NumpyBackend) -> None:
        chunks = _run(backend, _group([9], replace(SLIDING, num_return_sequences=3), 4))
        assert [chunk.sequence for chunk in chunks if chunk.token is not None] == [0, 1, 2] * 4

    def test_logprobs_are_those_of_the_raw_logits(self, backend: NumpyBackend) -> None:
        group = _group([9, 8], replace(SLIDING, temperature=0.5, top_k=3, logprobs=4), 8)
        found = [chunk.logprobs for chunk in _run(backend, group) if chunk.token is not None]
        for at, logprobs in enumerate(found, 2):
            ids = group.sequences[0].ids
            expected = torch.from_numpy(_logits(backend, ids[:at])).double().log_softmax(-1)
            assert logprobs is not None
            assert logprobs.logprob == pytest.approx(float(expected[ids[at]]), abs=1e-9)
            values, tokens = expected.topk(4)
            assert [token for token, _ in logprobs.top] == tokens.tolist()
            assert [value for _, value in logprobs.top] == pytest.approx(values.tolist(), abs=1e-9)

    def test_no_logprobs_unless_asked(self, backend: NumpyBackend) -> None:
        assert all(chunk.logprobs is None for chunk in _run(backend, _group([9], SLIDING, 3)))


def _some_group(pick: random.Random, vocabulary: int) -> Group:
    """A request of any kind."""
    sequences = pick.choice([1, 1, 1, 2, 5])
    options = GenerateOptions(
        seed=pick.randrange(2**31),
        temperature=pick.choice([1.0, 0.6, 2.0]),
        top_k=pick.choice([0, 1, 7, 50]),
        top_p=pick.choice([1.0, 0.8]),
        min_p=pick.choice([0.0, 0.02]),
        typical_p=pick.choice([1.0, 0.7]),
        repetition_penalty=pick.choice([1.0, 1.4]),
        no_repeat_ngram_size=pick.choice([0, 2]),
        num_return_sequences=sequences,
        overflow=pick.choice(["slide", "error"]),  # type: ignore[arg-type]
        logprobs=pick.choice([None, 3]),
    )
    prompt = [pick.randrange(vocabulary) for _ in range(pick.randrange(1, CONTEXT))]
    eos = pick.sample(range(vocabulary), pick.choice([0, 20]))
    return _group(prompt, options, pick.randrange(1, 30), eos=eos, dropped=pick.choice([0, 100]))


def _again(group: Group) -> Group:
    return Group(
        group.prompt,
        group.options,
        max_new_tokens=group.max_new_tokens,
        eos_ids=group.eos_ids,
        dropped=group.dropped,
    )


class TestRowsOfTheirOwn:
    @pytest.mark.parametrize("number", range(6))
    def test_whatever_runs_beside(
        self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """Requests of all kinds that come at any time, in any number of rows and size of chunks."""
        pick = random.Random(number)
        groups = [_some_group(pick, backend.config.vocab_size) for _ in range(12)]
        alone = [_again(group) for group in groups]
        expected = [_run(backend, group) for group in alone]
        monkeypatch.setattr(module, "ROWS", pick.choice([1, 2, 5, 32]))
        monkeypatch.setattr(module, "PREFILL_CHUNK", pick.choice([2, 5, 512]))
        scheduler, waiting = Scheduler(backend), list(groups)
        found: dict[Group, list[Chunk]] = {group: [] for group in groups}
        while waiting:
            scheduler.admit([waiting.pop()])
            for _, step in zip(range(pick.randrange(60)), scheduler.run(), strict=False):
                if step is not None:
                    found[step.sequence.group] += step.chunks
        for step in scheduler.run():
            if step is not None:
                found[step.sequence.group] += step.chunks
        for group, chunks in zip(groups, expected, strict=True):
            by_row = [[c for c in found[group] if c.sequence == n] for n in range(len(group.sequences))]
            assert by_row == [[c for c in chunks if c.sequence == n] for n in range(len(group.sequences))]
        assert not backend.slots

    def test_no_more_rows_than_there_is_room_for(self, backend: NumpyBackend) -> None:
        group = _group([1, 2, 3], replace(SLIDING, num_return_sequences=100), 6)
        chunks = _run(backend, group)
        assert max(len({*batch.slots.tolist()}) for batch in backend.passes) == module.ROWS
        assert len(chunks) == 700 and not backend.slots
        for n in (0, 31, 32, 99):
            alone = _group([1, 2, 3], replace(SLIDING, seed=n), 6)
            _run(backend, alone)
            assert _new(alone)[0] == _new(group)[n]

    def test_one_that_is_dropped_does_not_disturb(self, backend: NumpyBackend) -> None:
        options = replace(SLIDING, num_return_sequences=3)
        expected = _group([9], options, 12)
        _run(backend, expected)
        for at in range(20):
            scheduler = Scheduler(backend)
            kept, other = _group([9], options, 12), _group([8, 7], replace(options, seed=4), 12)
            scheduler.admit([other])
            scheduler.admit([kept])
            for n, _ in enumerate(scheduler.run()):
                if n == at:
                    scheduler.drop([other])
            assert _new(kept) == _new(expected)
            assert not backend.slots


class TestAsTransformers:
    """One draw a step for all rows of a request."""

    def _by_definition(self, backend: Backend, groups: list[Group], eos: frozenset[int]) -> list[list[int]]:
        rows = [[*group.prompt] for group in groups for _ in group.sequences]
        limits = [len(group.prompt) + group.max_new_tokens for group in groups for _ in group.sequences]
        prompts = [len(group.prompt) for group in groups for _ in group.sequences]
        ended = [False] * len(rows)
        generator = torch.Generator().manual_seed(77)
        while not all(ended):
            logits = np.stack([_logits(backend, row) for row in rows])
            drawn = torch.multinomial(torch.from_numpy(logits).softmax(-1), 1, generator=generator)
            for n, token in enumerate(drawn.squeeze(1).tolist()):
                if not ended[n]:
                    ended[n] = token in eos or len(rows[n]) + 1 >= limits[n]
                    rows[n] += [] if token in eos else [token]
        return [row[prompt:] for row, prompt in zip(rows, prompts, strict=True)]

    @pytest.mark.parametrize("chunk", [4, 512])
    def test_rows_draw_in_lockstep(
        self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        """Also where prompts are read in several passes, more rows run than otherwise, and some end early."""
        monkeypatch.setattr(module, "ROWS", 2)
        monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
        options = GenerateOptions(seed=77, rng="transformers", top_k=0, num_return_sequences=2)
        eos = frozenset(range(0, 257, 16))
        prompts, new = [[1], [*range(9)], [5, 6, 7]], [4, 6, 9]
        groups = [_group(p, options, n, eos=[*eos]) for p, n in zip(prompts, new, strict=True)]
        beside = _group([3, 3], SLIDING, 20)
        expected, alone = self._by_definition(backend, groups, eos), _by_definition(backend, beside)
        scheduler = Scheduler(backend)
        scheduler.admit([beside])
        scheduler.admit(groups)
        for _ in scheduler.run():
            pass
        assert [ids for group in groups for ids in _new(group)] == expected
        assert _new(beside) == alone
        assert not backend.slots

    def test_while_windows_slide(self, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A row that reads its window again has the others wait for it."""
        options = replace(SLIDING, seed=3, rng="transformers", num_return_sequences=2)
        texts = []
        for chunk in (512, 3):
            monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
            groups = [_group(prompt, options, 40) for prompt in ([1], [*range(12)])]
            scheduler = Scheduler(backend)
            scheduler.admit(groups)
            for _ in scheduler.run():
                pass
            texts.append([_new(group) for group in groups])
        assert texts[0] == texts[1] and not backend.slots


CONFIGURATIONS = [
    {},
    {"activation_function": "gelu", "tie_word_embeddings": False},
    {"activation_function": "relu", "n_inner": 40, "layer_norm_epsilon": 1e-3},
    {"activation_function": "silu", "scale_attn_weights": False},
    {"activation_function": "tanh", "scale_attn_by_inverse_layer_idx": True, "n_head": 1},
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda c: ",".join(c) or "default")
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "numpy"])
def test_the_second_truth_agrees(tmp_path: Path, name: str, config: dict[str, object]) -> None:
    """Mixed batches, rewinds and forks: `numpy_gpt2` against the backends of the package."""
    directory = make_model(tmp_path, tokenizer=None, n_positions=CONTEXT, std=0.1, **config)
    ours, other = load_on(name, directory).backend, NumpyBackend(open_checkpoint(directory))
    a, b = zip(*[(ours.new_slot(), other.new_slot()) for _ in range(3)], strict=True)
    pick = random.Random(3)
    present = [0, 0, 0]
    for _ in range(20):
        parts, wanted = [], []
        for n in pick.sample(range(3), pick.choice([1, 2, 3])):
            at = pick.randrange(present[n] + 1)
            ids = [pick.randrange(257) for _ in range(pick.randrange(1, CONTEXT - at + 1))]
            present[n] = at + len(ids)
            start = sum(len(ids) for *_, ids in parts)
            wanted += [place for place in range(start, start + len(ids)) if pick.random() < 0.5]
            parts.append((n, at, ids))
        found = ours.forward(Batch.of([(a[n], at, ids) for n, at, ids in parts], wanted))
        expected = other.forward(Batch.of([(b[n], at, ids) for n, at, ids in parts], wanted))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
        source, target = pick.sample(range(3), 2)
        tokens = pick.randrange(present[source] + 1)
        for backend, slots in ((ours, a), (other, b)):
            backend.copy_slot(slots[source], slots[target], tokens)
        present[target] = tokens
