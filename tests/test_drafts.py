"""Speculation: whoever guesses ahead, texts, log-probabilities and reasons are those of ``draft`` ``off``."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_models import needs_native
from numpy_gpt2 import NumpyBackend
from support import make_model, series, some_slow

import gpt2cli
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.backend import Batch
from gpt2cli.core.draft_model import _Followed
from gpt2cli.core.drafts import WORTH, ModelDrafts, Speculation, worth_verifying
from gpt2cli.core.engine import Engine
from gpt2cli.core.pass_times import PassTimes
from gpt2cli.core.quantise import Kind
from gpt2cli.core.results import Result
from gpt2cli.core.sequence import Sequence
from gpt2cli.errors import InvalidOption, UsageError
from gpt2cli.options import GenerateOptions, LoadOptions

BUILTIN = Path(gpt2cli.__file__).parent / "builtin"
VOCABULARY = 23
"""So small that random texts repeat."""

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {},
    "top-p 0.9": {"top_p": 0.9},
    "penalty": {"repetition_penalty": 1.3, "temperature": 0.8},
}


class Oracle:
    """A drafter of a set quality: the text's own next tokens, each spoiled with some probability.

    One of quality 0 proposes nonsense.
    """

    def __init__(self, texts: dict[tuple[int, ...], list[int]], quality: float, vocabulary: int) -> None:
        self._texts, self._quality, self._vocabulary = texts, quality, vocabulary
        self._pick = random.Random(quality)
        self.learned: list[bool] = []

    def propose(self, rows: list[Sequence], limits: list[int], beside: int) -> list[list[int]]:
        return [self._of(row, self._pick.randint(0, limit)) for row, limit in zip(rows, limits, strict=True)]

    def _of(self, row: Sequence, count: int) -> list[int]:
        text = self._texts.get((*row.group.prompt, row.seed), [])
        known = [*row.group.prompt, *text][len(row.ids) :][:count]
        spoiled = [n if self._pick.random() < self._quality else self._nonsense() for n in known]
        return spoiled + [self._nonsense() for _ in range(count - len(known))]

    def _nonsense(self) -> int:
        return self._pick.randrange(self._vocabulary)

    def learn(self, *, right: bool) -> None:
        self.learned.append(right)

    def forget(self, sequence: Sequence) -> None:
        pass


def facts(result: Result) -> list[Any]:
    """All that must not depend on drafts."""
    return [(c.seed, c.text, c.token_ids, c.logprobs, c.finish_reason) for c in result.choices]


def speculation(engine: Engine) -> Speculation:
    return engine._scheduler.speculation


def engine_on(backend: str, directory: Path, precision: Kind = "fp32") -> Engine:
    checkpoint = open_checkpoint(directory)
    if backend == "numpy":
        return Engine(checkpoint, NumpyBackend(checkpoint), None)
    return Engine.load(directory, LoadOptions(device="cpu", backend="native", precision=precision, threads=1))


@pytest.fixture(scope="module", params=["numpy", pytest.param("native", marks=needs_native)], name="engine")
def an_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A random model, and a smaller one of a shorter context that guesses ahead for it as ``small``."""
    made = []
    for name, config in (("large", {"n_positions": 40}), ("small", {"n_positions": 12, "n_layer": 1})):
        directory = tmp_path_factory.mktemp(name)
        make_model(directory, tokenizer=None, vocab_size=VOCABULARY, n_embd=16, std=0.3, **config)
        made.append(engine_on(request.param, directory))
    engine, small = made
    engine.draft_with(small)
    yield engine
    for each in made:
        each.backend.close()


def check(engine: Engine, prompt: Any, drafts: list[str], **settings: Any) -> None:
    """Each of ``drafts`` gives what ``off`` gives, however good the guesses are; no slot is left behind."""
    options = GenerateOptions(**{"seed": 5, "max_new_tokens": 20, "logprobs": 2, **settings})
    off = engine.generate(prompt, replace(options, draft="off"))
    expected = [facts(result) for result in (off if isinstance(off, list) else [off])]
    slots = len(getattr(engine.backend, "slots", ()))
    for draft in drafts:
        found = engine.generate(prompt, replace(options, draft=draft))
        results = found if isinstance(found, list) else [found]
        assert [facts(result) for result in results] == expected, draft
        for result in results:
            assert 0 <= result.stats.accepted <= result.stats.drafted
    assert len(getattr(engine.backend, "slots", ())) == slots


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 1, 4]
WAYS: dict[str, dict[str, Any]] = {
    "several": {"num_return_sequences": 5},
    "one token": {"max_new_tokens": 1},
    "two tokens": {"max_new_tokens": 2},
    "to the end of the context": {"max_new_tokens": 100},
    "sliding": {"max_new_tokens": 150, "overflow": "slide"},
    "several sliding": {"max_new_tokens": 90, "overflow": "slide", "num_return_sequences": 3},
    "no n-gram twice": {"no_repeat_ngram_size": 2},
    "joint draws": {"rng": "transformers", "num_return_sequences": 3},
}


@pytest.mark.parametrize("settings", [*SETTINGS, *WAYS])
def test_the_text_is_the_same(engine: Engine, settings: str) -> None:
    check(engine, PROMPT, ["auto", "lookup", "small"], **{**SETTINGS, **WAYS}[settings])


@pytest.mark.parametrize("settings", some_slow([*SETTINGS], 2))
def test_of_many_prompts(engine: Engine, settings: str) -> None:
    """More than run at once, so that they join and leave; each drafted for on its own."""
    pick = random.Random(settings)
    prompts = [[pick.randrange(5) for _ in range(pick.randint(1, 20))] for _ in range(34)]
    check(engine, prompts, ["auto", "lookup", "small"], overflow="slide", **SETTINGS[settings])


@pytest.mark.parametrize("quality", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("settings", [{}, {"num_return_sequences": 3}, {"overflow": "slide"}])
def test_any_quality_of_drafts(engine: Engine, quality: float, settings: dict[str, Any]) -> None:
    options = GenerateOptions(seed=1, max_new_tokens=60, draft="off", **settings)
    off = engine.generate(PROMPT, options)
    texts = {(*PROMPT, choice.seed): choice.token_ids for choice in off.choices}
    whose = speculation(engine)
    before, whose.lookup = whose.lookup, Oracle(texts, quality, VOCABULARY)
    try:
        found = engine.generate(PROMPT, replace(options, draft="lookup"))
        learned = whose.lookup.learned
    finally:
        whose.lookup = before
    assert facts(found) == facts(off)
    stats = found.stats
    assert sum(learned) == stats.accepted <= stats.drafted
    if quality == 1:
        assert stats.accepted == stats.drafted > 0
    if len(off.choices) == 1 and "overflow" not in settings:
        # Each pass gives one token more than drafts that were right; the last one perhaps not.
        assert stats.completion_tokens - stats.steps - stats.accepted in (0, 1)


def test_an_end_of_text_that_was_guessed(engine: Engine) -> None:
    """It ends the text, and is no token of it, however it came."""
    options = GenerateOptions(seed=2, max_new_tokens=30, draft="off")
    text = engine.generate(PROMPT, options).choices[0].token_ids
    end = text[20]
    first = text.index(end)
    engine.config = replace(engine.config, eos_token_ids=(end,))
    whose = speculation(engine)
    before, whose.lookup = whose.lookup, Oracle({(*PROMPT, 2): text}, 1.0, VOCABULARY)
    try:
        found = engine.generate(PROMPT, replace(options, draft="lookup"))
    finally:
        whose.lookup = before
        engine.config = engine.backend.config
    (choice,) = found.choices
    assert (choice.token_ids, choice.finish_reason) == (text[:first], "eos")


def test_a_stream_can_be_left_among_right_drafts(engine: Engine) -> None:
    """What is kept of it is true: a text that begins alike is the one that it is alone."""
    options = GenerateOptions(seed=3, max_new_tokens=25, draft="off")
    text = engine.generate(PROMPT, options).choices[0].token_ids
    whose, few = speculation(engine), replace(options, max_new_tokens=5)
    alone = []
    for end in (4, 25):
        engine.generate([22], few)  # it has nothing in common with what comes next
        alone.append(engine.generate([*PROMPT, *text[:end]], few).choices[0].token_ids)
    before, whose.lookup = whose.lookup, Oracle({(*PROMPT, 3): text}, 0.9, VOCABULARY)
    try:
        for stop, (end, expected) in itertools.product(range(1, 12), zip((4, 25), alone, strict=True)):
            chunks = engine.stream(PROMPT, replace(options, draft="lookup"))
            assert [chunk.token for chunk in itertools.islice(chunks, stop)] == text[:stop]
            chunks.close()
            assert engine.generate([*PROMPT, *text[:end]], few).choices[0].token_ids == expected
    finally:
        whose.lookup = before


def test_chunks_tell_which_tokens_were_guessed(engine: Engine) -> None:
    options = GenerateOptions(seed=3, max_new_tokens=25, draft="lookup")
    chunks = [*engine.stream([1, 2, 3, 1, 2, 3, 1, 2], options)]
    assert sum(chunk.drafted for chunk in chunks) == chunks[-1].stats.accepted  # type: ignore[union-attr]
    assert not any(chunk.drafted and chunk.token is None for chunk in chunks)
    off = [*engine.stream([1, 2, 3, 1, 2, 3, 1, 2], replace(options, draft="off"))]
    assert not any(chunk.drafted for chunk in off)
    assert (off[-1].stats.drafted, off[-1].stats.accepted) == (0, 0)  # type: ignore[union-attr]


def test_the_same_model_guesses_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same noise, so that only what it is not asked for has to be drawn by a pass of its own."""
    make_model(tmp_path, tokenizer=None, vocab_size=VOCABULARY, n_embd=16, std=0.3, n_positions=200)
    engine, same = engine_on("numpy", tmp_path), engine_on("numpy", tmp_path)
    engine.draft_with(same)
    model = speculation(engine).model
    assert isinstance(model, ModelDrafts)
    monkeypatch.setattr(model, "_count", lambda rows, beside: 4)  # it is too slow to be worth it
    for rows in (1, 3):
        options = GenerateOptions(seed=1, max_new_tokens=100, num_return_sequences=rows, draft="same")
        stats = engine.generate(PROMPT, options).stats
        assert stats.accepted == stats.drafted > 50 * rows
    # One slot is kept for a text that begins alike.
    assert len(same.backend.slots) == 1  # type: ignore[attr-defined]
    slot, held = model._model._kept or (0, [])
    same.backend.passes.clear()  # type: ignore[attr-defined]
    engine.generate([*PROMPT, 0], GenerateOptions(seed=1, max_new_tokens=10, draft="same"))
    first = same.backend.passes[0]  # type: ignore[attr-defined]
    assert (first.slots[0], first.positions[0]) == (slot, len(PROMPT)) and held[: len(PROMPT)] == PROMPT
    # What was read as a draft is not read again as text: after four that were right two tokens are left.
    same.backend.passes.clear()  # type: ignore[attr-defined]
    engine.generate([5], GenerateOptions(seed=1, max_new_tokens=40, draft="same"))
    assert {len(each) for each in same.backend.passes[4:]} == {1, 2}  # type: ignore[attr-defined]


def test_a_model_that_is_always_wrong_is_left_alone(tmp_path: Path) -> None:
    """It is tried again from time to time, less and less often."""
    shape = {"vocab_size": 400, "n_embd": 16, "n_positions": 400}
    engine, other = (
        engine_on("numpy", make_model(tmp_path / str(seed), tokenizer=None, seed=seed, **shape))
        for seed in (0, 1)
    )
    engine.draft_with(other)
    options = GenerateOptions(seed=1, max_new_tokens=350, draft="other", top_k=0)
    stats = engine.generate([1], options).stats
    assert stats.accepted < 10 and stats.drafted < 120
    late = engine.generate([1], replace(options, seed=2)).stats
    assert late.drafted < 20


def test_a_draft_model_knows_what_its_slots_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one in the middle was wrong, in a vocabulary so small that tokens are alike by chance."""
    make_model(tmp_path, tokenizer=None, vocab_size=5, n_embd=16, std=0.2, n_positions=120)
    engine = engine_on("numpy", tmp_path)
    small = engine_on("numpy", tmp_path)
    engine.draft_with(small)
    model = speculation(engine).model
    assert isinstance(model, ModelDrafts)
    monkeypatch.setattr(model, "_count", lambda rows, beside: 8)
    held: dict[int, list[int]] = {}
    forward, settle = small.backend.forward, _Followed.settle

    def watched(batch: Batch) -> Any:
        for slot, position, token in zip(batch.slots, batch.positions, batch.tokens, strict=True):
            held[int(slot)] = [*held.get(int(slot), [])[:position], int(token)]
        return forward(batch)

    def checked(text: _Followed) -> None:
        settle(text)
        known = text.sequence.ids[text.window :][: text.present]
        assert held.get(text.slot, [])[: text.present] == known

    monkeypatch.setattr(small.backend, "forward", watched)
    monkeypatch.setattr(_Followed, "settle", checked)
    for seed in range(6):
        engine.generate([1, 2], GenerateOptions(seed=seed, max_new_tokens=100, draft="small", temperature=3))


def test_a_draft_model_that_fails_costs_no_text(tmp_path: Path) -> None:
    make_model(tmp_path / "large", tokenizer=None, vocab_size=VOCABULARY, n_embd=16)
    broken = make_model(tmp_path / "broken", tokenizer=None, vocab_size=VOCABULARY, n_embd=16)
    engine, small = engine_on("numpy", tmp_path / "large"), engine_on("numpy", broken)
    small.backend._w["ln_f.weight"][:] = np.nan  # type: ignore[attr-defined]
    engine.draft_with(small)
    options = GenerateOptions(seed=1, max_new_tokens=20)
    off = engine.generate(PROMPT, replace(options, draft="off"))
    assert facts(engine.generate(PROMPT, replace(options, draft="broken"))) == facts(off)


def test_a_model_that_has_become_good_is_trusted_again() -> None:
    """One draft that is right is enough for the next to be tried soon."""
    drafts = ModelDrafts(None, PassTimes())  # type: ignore[arg-type]
    drafts._patience = ModelDrafts.MOST_PATIENCE
    drafts.learn(right=False)
    assert drafts._patience == ModelDrafts.MOST_PATIENCE
    drafts.learn(right=True)
    assert drafts._patience == ModelDrafts.PATIENCE


def test_slots_go_back_to_the_draft_model(tmp_path: Path) -> None:
    make_model(tmp_path, tokenizer=None, vocab_size=VOCABULARY, n_embd=16)
    engine, small = engine_on("numpy", tmp_path), engine_on("numpy", tmp_path)
    for _ in range(3):
        engine.draft_with(small)
        engine.generate(PROMPT, GenerateOptions(seed=1, max_new_tokens=20, draft="small"))
    engine.draft_with(None)
    assert not small.backend.slots  # type: ignore[attr-defined]


@pytest.mark.parametrize("draft", ["off", "lookup"])
def test_steps_are_the_passes_after_the_prompt(tmp_path: Path, draft: str) -> None:
    """Those that read a window again, too."""
    make_model(tmp_path, tokenizer=None, vocab_size=VOCABULARY, n_embd=16, n_positions=24)
    engine = engine_on("numpy", tmp_path)
    options = GenerateOptions(seed=1, max_new_tokens=100, overflow="slide", draft=draft)
    stats = engine.generate([1, 2, 3], options).stats
    assert stats.steps == len(engine.backend.passes) - 1  # type: ignore[attr-defined]


def test_who_cannot_guess_ahead(tmp_path: Path) -> None:
    make_model(tmp_path / "large", vocab_size=300)
    make_model(tmp_path / "other", vocab_size=301)
    engine = Engine.load(tmp_path / "large")
    with pytest.raises(UsageError, match="another vocabulary"):
        engine.draft_with(Engine.load(tmp_path / "other"))
    make_model(tmp_path / "short", vocab_size=300, n_positions=1)
    with pytest.raises(UsageError, match="its context is too short"):
        engine.draft_with(Engine.load(tmp_path / "short"))
    with pytest.raises(InvalidOption, match="there is no draft model 'distilgpt2' here"):
        engine.generate("a", GenerateOptions(draft="distilgpt2"))
    engine.draft_with(Engine.load(tmp_path / "large"))
    engine.generate("a", GenerateOptions(draft="large", max_new_tokens=3))
    engine.draft_with(None)
    with pytest.raises(InvalidOption, match="there is no draft model"):
        engine.generate("a", GenerateOptions(draft="large"))


def test_unasked_only_where_no_bit_changes(tmp_path: Path) -> None:
    """torch's logits depend on the batch in their last bits: there drafts are made on request."""
    make_model(tmp_path, vocab_size=300, tokenizer=None)
    engine = Engine.load(tmp_path, LoadOptions(backend="torch", device="cpu"))
    options = GenerateOptions(seed=1, max_new_tokens=40, temperature=0)
    assert engine.generate([1, 2, 1, 2, 1], options).stats.drafted == 0
    assert engine.generate([1, 2, 1, 2, 1], replace(options, draft="lookup")).stats.drafted > 0


def test_what_is_worth_verifying() -> None:
    """Against all choices: no other number of the likeliest drafts makes notably more tokens a second."""
    pick = random.Random(0)
    for _ in range(300):
        odds = [
            np.cumprod([pick.random() for _ in range(pick.randint(0, 5))]).tolist()
            for _ in range(pick.randint(1, 4))
        ]
        base, slope = pick.random() + 0.1, pick.random() * pick.choice([0.01, 0.3])

        def seconds(tokens: int, base: float = base, slope: float = slope) -> float:
            return base + slope * tokens

        counts = worth_verifying(odds, seconds)
        assert all(0 <= count <= len(own) for count, own in zip(counts, odds, strict=True))

        def rate(counts: list[int], odds: list[list[float]] = odds, seconds: Any = seconds) -> float:
            expected = sum(1 + sum(own[:count]) for own, count in zip(odds, counts, strict=True))
            return float(expected / seconds(len(odds) + sum(counts)))

        best = max(rate([*each]) for each in itertools.product(*(range(len(own) + 1) for own in odds)))
        assert rate(counts) >= best / WORTH - 1e-12


class TestPassTimes:
    def test_what_was_measured_is_known(self) -> None:
        times = PassTimes()
        assert not times.known(1)
        times.record(1, 0.5)
        assert times.known(1) and times.of(1) == 0.5
        for _ in range(40):
            times.record(1, 0.3)
        assert times.of(1) == pytest.approx(0.3, rel=1e-3)

    def test_what_was_not_is_judged_by_its_neighbours(self) -> None:
        times = PassTimes()
        assert times.of(8) > times.of(2) > times.of(1) > 0
        times.record(2, 0.2)
        assert times.of(1) < 0.2 < times.of(3)
        times.record(6, 0.4)
        assert times.of(4) == pytest.approx(0.3)
        assert times.of(7) > 0.4

    def test_an_interrupted_pass_says_little(self) -> None:
        times = PassTimes()
        times.record(1, 0.1)
        times.record(1, 100.0)
        assert times.of(1) < 0.2

    def test_a_first_pass_that_was_interrupted_says_little(self) -> None:
        times = PassTimes()
        times.record(1, 0.1)
        times.record(4, 100.0)
        assert times.of(4) < 0.4

    def test_what_was_measured_long_ago_is_forgotten(self) -> None:
        times = PassTimes()
        times.record(5, 9.0)
        for _ in range(PassTimes.LATELY):
            times.record(1, 0.1)
        times.record(5, 0.2)
        assert times.of(5) == pytest.approx(0.2)
        times = PassTimes()
        times.record(5, 9.0)
        for _ in range(PassTimes.LATELY):
            times.record(1, 0.1)
        assert not times.known(5) and times.of(5) < 1


SERIES: list[tuple[Kind, str, int]] = [
    *(("int8", name, 3) for name in SETTINGS),
    *(
        (precision, name, series(25, 10))
        for precision in ("fp32", "fp16", "int8", "int4")
        for name in SETTINGS
    ),
]


@needs_native
@pytest.mark.parametrize("case", some_slow(SERIES, len(SETTINGS)), ids=lambda case: "-".join(map(str, case)))
def test_a_trained_model(case: tuple[Kind, str, int]) -> None:
    """Prompts of all lengths; lookup, a draft model, and nonsense."""
    precision, settings, count = case
    engine, small = engine_on("native", BUILTIN, precision), engine_on("native", BUILTIN, "int4")
    check_prompts(engine, small, settings, count)
    engine.backend.close()
    small.backend.close()


def check_prompts(engine: Engine, small: Engine, settings: str, count: int) -> None:
    """``count`` prompts with and without drafts, bit for bit."""
    pick = random.Random(settings)
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    cuts = [(pick.randrange(len(text) - 400), pick.choice([1, 5, 60, 400])) for _ in range(count)]
    prompts = [text[at : at + length] for at, length in cuts]
    engine.draft_with(small)
    options = GenerateOptions(seed=9, max_new_tokens=24, logprobs=3, **SETTINGS[settings])
    expected = [facts(result) for result in engine.generate(prompts, replace(options, draft="off"))]
    texts = {tuple(fact[0][2]) for fact in expected}
    assert len(texts) > count // 2, "texts that are all the same prove nothing"
    whose = speculation(engine)
    lookup = whose.lookup
    drafted = 0
    for draft, drafter in (("lookup", lookup), ("small", lookup), ("lookup", Oracle({}, 0.0, 4096))):
        whose.lookup = drafter
        results = engine.generate(prompts, replace(options, draft=draft))
        assert [facts(result) for result in results] == expected, draft
        drafted += sum(result.stats.drafted for result in results)
    assert drafted > 100
    alone = engine.generate(prompts[0], replace(options, draft="lookup"))
    assert facts(alone) == expected[0]
