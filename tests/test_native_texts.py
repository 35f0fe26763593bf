"""Sampled texts are the same through every way of computing them on the native backend."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
from native_models import PRECISIONS, instruction_sets, needs_native
from support import REPOSITORY, series, shared, some_slow

import gpt2cli
from gpt2cli.core import scheduler
from gpt2cli.core.engine import Engine
from gpt2cli.core.native.library import SWITCH
from gpt2cli.core.quantise import Kind
from gpt2cli.options import GenerateOptions, LoadOptions

pytestmark = needs_native

TEXTS, FAST_TEXTS = series(500, 60), 20
PORTABLE_SHARE = 10
"""One of so many texts of the larger model: that instruction set is slow."""
NEW_TOKENS = 16
SETTINGS = (
    {},
    {"temperature": 1.3, "top_k": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"min_p": 0.05, "top_k": 0, "repetition_penalty": 1.2},
    {"temperature": 0.6, "typical_p": 0.9, "no_repeat_ngram_size": 3},
)
MODELS = ("tiny", "slm_4096_kunal")


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts under one set of options, and what each gives alone."""

    prompts: list[list[int]]
    options: GenerateOptions
    expected: list[list[int]]


@dataclass(frozen=True, slots=True)
class Case:
    directory: Path
    precision: Kind
    engine: Engine
    groups: list[Texts]


def _directory(model: str) -> Path:
    if model == "tiny":
        return Path(gpt2cli.__file__).parent / "builtin"
    return shared("models", model, "hf")


@contextmanager
def _engine(directory: Path, precision: Kind, threads: int = 1, instructions: str = "1") -> Iterator[Engine]:
    with mock.patch.dict(os.environ, {SWITCH: instructions}):
        engine = Engine.load(
            directory, LoadOptions(backend="native", device="cpu", precision=precision, threads=threads)
        )
    yield engine
    engine.backend.close()


def _prompts(engine: Engine, count: int, seed: str) -> list[list[int]]:
    """Pieces of a text that the model can write, of all lengths up to half of the context."""
    pick = random.Random(seed)
    if engine.checkpoint.directory == _directory("tiny"):
        text = (REPOSITORY / "README.md").read_text("utf-8")
    else:
        text = shared("models", MODELS[1], "source", "corpus.txt").read_text("utf-8")
    found: list[list[int]] = []
    while len(found) < count:
        at = pick.randrange(len(text) - 1000)
        ids = engine.encode(text[at : at + 1000])
        found.append(ids[: pick.choice([1, 3, 10, 30, engine.config.n_positions // 2])])
    return found


def _texts(case_id: str, engine: Engine, count: int) -> list[Texts]:
    groups = []
    for number, settings in enumerate(SETTINGS):
        prompts = _prompts(engine, count // len(SETTINGS), f"{case_id} {number}")
        options = GenerateOptions(seed=1000 * number, max_new_tokens=NEW_TOKENS, **settings)  # type: ignore[arg-type]
        expected = [engine.generate(prompt, options).choices[0].token_ids for prompt in prompts]
        groups.append(Texts(prompts, options, expected))
    return groups


# Each precision once in the fast run.
FAST = [(MODELS[precision != "int4"], precision, FAST_TEXTS) for precision in PRECISIONS]
ALL = [(model, precision, TEXTS) for model in MODELS for precision in PRECISIONS]


@pytest.fixture(
    scope="module", params=some_slow([*FAST, *ALL], len(FAST)), ids=lambda case: "-".join(map(str, case))
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    model, precision, count = request.param
    directory = _directory(model)
    with _engine(directory, precision) as engine:
        groups = _texts(f"{model} {precision}", engine, count)
        # Within a group a prompt that comes twice has the same text: it has the same seed.
        texts = [{*map(tuple, group.expected)} for group in groups]
        prompts = [{*map(tuple, group.prompts)} for group in groups]
        assert sum(map(len, texts)) > 0.9 * sum(map(len, prompts)), (
            "texts that are all the same prove nothing"
        )
        yield Case(directory, precision, engine, groups)


def _same(engine: Engine, groups: list[Texts], way: str) -> None:
    """All prompts of a group in one request."""
    for texts in groups:
        found = engine.generate(texts.prompts, texts.options)
        assert [result.choices[0].token_ids for result in found] == texts.expected, way


def test_side_by_side(case: Case) -> None:
    """32 at a time; they join and leave while others run."""
    _same(case.engine, case.groups, "one list")


@pytest.mark.parametrize(("size", "threads"), [(1, 2), (7, 3), (64, 1)])
def test_prompts_in_chunks_on_threads(
    case: Case, size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once; each alone is held, bit by bit, by test_native_bits."""
    monkeypatch.setattr(scheduler, "PREFILL_CHUNK", size)
    with _engine(case.directory, case.precision, threads) as engine:
        _same(engine, case.groups, f"chunks of {size} on {threads} threads")


@pytest.mark.parametrize("instructions", instruction_sets()[1:])
def test_instruction_sets(case: Case, instructions: str) -> None:
    groups = case.groups
    if instructions == "portable" and case.directory == _directory("tiny"):
        groups = [_short(texts, PORTABLE_SHARE) for texts in groups]
    with _engine(case.directory, case.precision, instructions=instructions) as engine:
        _same(engine, groups, instructions)


def _short(texts: Texts, share: int) -> Texts:
    """One of so many texts, those of the shortest prompts."""
    pairs = sorted(zip(texts.prompts, texts.expected, strict=True), key=lambda pair: len(pair[0]))
    kept = pairs[: -(-len(pairs) // share)]
    return Texts([prompt for prompt, _ in kept], texts.options, [text for _, text in kept])


def test_forks(case: Case) -> None:
    """Several continuations of a prompt that is read once; each is what it is alone."""
    for texts in case.groups:
        for prompt, expected in [*zip(texts.prompts, texts.expected, strict=True)][::5]:
            options = replace(texts.options, num_return_sequences=3)
            first, second, _ = case.engine.generate(prompt, options).choices
            assert first.token_ids == expected
            alone = case.engine.generate(prompt, replace(texts.options, seed=second.seed))
            assert second.token_ids == alone.choices[0].token_ids


def test_rewinds(case: Case) -> None:
    """The slot of the last text is kept, and what the next one has in common with it is not read again."""
    for texts in case.groups:
        for prompt, expected in zip(texts.prompts, texts.expected, strict=True):
            half = len(prompt) // 2
            case.engine.generate([*prompt[:half], 5, 6, 7], replace(texts.options, max_new_tokens=3))
            found = case.engine.generate(prompt, texts.options)
            assert found.choices[0].token_ids == expected


def test_streams_that_are_stopped(case: Case) -> None:
    """What a stream that was closed in the middle has left in the slot is true, and goes on."""
    for texts in case.groups:
        for prompt, expected in [*zip(texts.prompts, texts.expected, strict=True)][::3]:
            stream = case.engine.stream(prompt, texts.options)
            for _ in range(4):
                next(stream, None)
            stream.close()
            assert case.engine.generate(prompt, texts.options).choices[0].token_ids == expected
