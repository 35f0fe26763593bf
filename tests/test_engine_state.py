"""What the engine keeps from one stream to the next, and that no text depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from numpy_gpt2 import NumpyBackend, load_numpy
from support import BACKENDS, load_on, make_model

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core import scheduler as scheduler_module
from gpt2cli.core.backend import Floats
from gpt2cli.core.engine import Engine
from gpt2cli.options import GenerateOptions, LoadOptions
from gpt2cli.text.tokenizer import Tokenizer

CONTEXT = 64
PROMPT = "Once upon"
DRAWN = GenerateOptions(seed=5, max_new_tokens=20, ignore_eos=True)


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> Engine:
    engine: Engine = load_on(request.param, tiny_model)
    return engine


def _ids(engine: Engine, options: GenerateOptions) -> list[list[int]]:
    return [choice.token_ids for choice in engine.generate(PROMPT, options).choices]


class TestReproducible:
    """A text is a function of model, prompt, options and seed."""

    def test_a_sequence_alone_is_as_among_others(self, engine: Engine) -> None:
        together = _ids(engine, replace(DRAWN, num_return_sequences=4))
        assert len({tuple(ids) for ids in together}) == 4
        assert [_ids(engine, replace(DRAWN, seed=5 + n))[0] for n in range(4)] == together

    def test_with_rows_that_end_early(self, tmp_path: Path) -> None:
        engine = Engine.load(make_model(tmp_path, tokenizer=None, eos_token_id=[*range(0, 257, 9)], std=0.1))
        options = GenerateOptions(seed=0, max_new_tokens=30, num_return_sequences=8, top_k=0)
        together = engine.generate([1], options).choices
        assert len({len(choice.token_ids) for choice in together}) > 3
        for choice in together:
            alone = engine.generate([1], replace(options, seed=choice.index, num_return_sequences=1))
            assert alone.choices[0].token_ids == choice.token_ids
            assert alone.choices[0].finish_reason == choice.finish_reason

    @pytest.mark.parametrize("rng", ["default", "transformers"])
    def test_after_anything_else(self, engine: Engine, tiny_model: Path, rng: str) -> None:
        """Not on what the cache holds from before: an other text, its own beginning, an interrupt."""
        options = replace(DRAWN, rng=rng)  # type: ignore[arg-type]
        expected = _ids(load_numpy(tiny_model), options)

        def unrelated() -> None:
            engine.generate("Twice", replace(DRAWN, seed=77))

        def itself() -> None:
            engine.generate(PROMPT, options)

        def longer() -> None:
            engine.generate(PROMPT + " a time", replace(DRAWN, num_return_sequences=3))

        def interrupted() -> None:
            for n, _ in enumerate(engine.stream(PROMPT, options)):
                if n == 7:
                    engine.interrupt()

        def closed() -> None:
            stream = engine.stream(PROMPT + "!", options)
            next(stream)
            next(stream)
            engine.stream("x", options)

        def slid() -> None:
            engine.generate(PROMPT, replace(DRAWN, max_new_tokens=150, overflow="slide"))

        for disturb in (unrelated, itself, longer, interrupted, closed, slid, unrelated):
            disturb()
            assert _ids(engine, options) == expected, disturb.__name__

    def test_without_a_seed_one_is_drawn_and_reported(self, engine: Engine) -> None:
        options = GenerateOptions(max_new_tokens=20, ignore_eos=True)
        first, second = engine.generate(PROMPT, options), engine.generate(PROMPT, options)
        assert first.options.seed is not None and first.options.seed != second.options.seed
        assert first.choices[0].seed == first.options.seed
        assert engine.generate(PROMPT, first.options).choices == first.choices

    def test_as_transformers_all_sequences_have_one_seed(self, engine: Engine) -> None:
        options = replace(DRAWN, rng="transformers", num_return_sequences=3)
        assert [choice.seed for choice in engine.generate(PROMPT, options).choices] == [5, 5, 5]

    @pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
    def test_in_every_precision(self, tiny_model: Path, precision: str) -> None:
        engine = Engine.load(tiny_model, LoadOptions(precision=precision))  # type: ignore[arg-type]
        together = _ids(engine, replace(DRAWN, num_return_sequences=3))
        assert [_ids(engine, replace(DRAWN, seed=5 + n))[0] for n in range(3)] == together


class TestPrefixReuse:
    def _cached(self, engine: Engine, prompt: str | list[int], options: GenerateOptions = DRAWN) -> int:
        return engine.generate(prompt, options).stats.cached_tokens

    def test_nothing_at_first(self, engine: Engine) -> None:
        assert self._cached(engine, PROMPT) == 0

    def test_the_same_prompt(self, engine: Engine) -> None:
        """Its last token is computed again, for the logits."""
        engine.generate(PROMPT, DRAWN)
        assert self._cached(engine, PROMPT) == len(PROMPT) - 1

    def test_a_prompt_that_goes_on(self, engine: Engine) -> None:
        """As in a chat: the whole history but the newest token, which was never fed."""
        ids = engine.encode(PROMPT)
        text = [*ids, *engine.generate(PROMPT, DRAWN).choices[0].token_ids]
        assert self._cached(engine, [*text, 1, 2, 3]) == len(text) - 1

    def test_after_an_eos(self, tmp_path: Path) -> None:
        """Here the newest token was fed: the end of the text came after it."""
        free = Engine.load(make_model(tmp_path / "free"))
        whole = free.generate(PROMPT, DRAWN).choices[0].token_ids
        engine = Engine.load(make_model(tmp_path / "eos", eos_token_id=whole[10]))
        text = [
            *engine.encode(PROMPT),
            *engine.generate(PROMPT, GenerateOptions(seed=5)).choices[0].token_ids,
        ]
        assert self._cached(engine, [*text, 1, 2, 3]) == len(text)

    def test_the_common_beginning_only(self, engine: Engine) -> None:
        engine.generate("abcdef", DRAWN)
        assert self._cached(engine, "abcxyz") == 3
        assert self._cached(engine, "abcdef") == 3
        assert self._cached(engine, "bcd") == 0
        assert self._cached(engine, "b") == 0

    def test_several_sequences_keep_the_prompt(self, engine: Engine) -> None:
        several = replace(DRAWN, num_return_sequences=3)
        engine.generate(PROMPT, several)
        assert self._cached(engine, PROMPT + "!") == len(PROMPT)
        assert self._cached(engine, PROMPT, several) == len(PROMPT) - 1

    def test_after_an_interrupt(self, engine: Engine) -> None:
        stream = engine.stream(PROMPT, DRAWN)
        tokens = [next(stream).token for _ in range(6)]
        engine.interrupt()
        tokens += [chunk.token for chunk in stream]
        text = [*engine.encode(PROMPT), *(token for token in tokens if token is not None)]
        assert len(text) == len(PROMPT) + 7 - 1
        assert self._cached(engine, [*text, 1]) == len(text) - 1

    def test_after_sliding(self, engine: Engine) -> None:
        """Positions are absolute: what is kept is the window, as a text from its own beginning."""
        options = replace(DRAWN, max_new_tokens=150, overflow="slide")
        result = engine.generate(PROMPT, options)
        text = [*engine.encode(PROMPT), *result.choices[0].token_ids][result.stats.dropped_tokens :]
        prompt = [*text[:-1], 7][: CONTEXT - 1]
        expected = Engine(engine.checkpoint, engine.backend, engine.tokenizer).generate(prompt, DRAWN)
        found = engine.generate(prompt, DRAWN)
        assert found.stats.cached_tokens == len(prompt) - 1
        assert found.choices == expected.choices

    def test_what_is_reused_gives_the_same_logits(self, engine: Engine, tiny_model: Path) -> None:
        engine.generate(PROMPT, DRAWN)
        options = replace(DRAWN, logprobs=5)
        found, fresh = (e.generate(PROMPT + " a", options) for e in (engine, load_numpy(tiny_model)))
        assert found.stats.cached_tokens > 0
        assert found.choices[0].token_ids == fresh.choices[0].token_ids
        for ours, theirs in zip(found.choices[0].logprobs, fresh.choices[0].logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


class _Crash(BaseException):
    """What a signal handler may raise, anywhere."""


class _Crashing(NumpyBackend):
    """Fails at a token, when the countdown is over; what it has written of the batch stays written."""

    countdown = 10**9

    def token(self, token: int, slot: int, position: int) -> Floats:
        hidden = super().token(token, slot, position)
        self.countdown -= 1
        if self.countdown == 0:
            raise _Crash
        return hidden


@pytest.fixture
def crashing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, _Crashing]:
    """An engine whose forward pass can fail in its middle."""
    monkeypatch.setattr(scheduler_module, "PREFILL_CHUNK", 10)
    checkpoint = open_checkpoint(tiny_model)
    backend = _Crashing(checkpoint)
    return Engine(checkpoint, backend, Tokenizer.from_directory(tiny_model)), backend


@pytest.mark.slow
def test_a_crash_in_any_forward_pass_leaves_a_true_cache(
    crashing: tuple[Engine, _Crashing], tiny_model: Path
) -> None:
    """Ctrl-C while the window slides once left old keys in the cache under new tokens."""
    engine, backend = crashing
    options = replace(DRAWN, max_new_tokens=70, overflow="slide")
    reference = load_numpy(tiny_model)
    ids = [*reference.encode(PROMPT), *reference.generate(PROMPT, options).choices[0].token_ids]
    prompts = [ids[:20], *(ids[start : start + 50] for start in (16, 32))]
    fresh = [load_numpy(tiny_model).generate(prompt, DRAWN).choices for prompt in prompts]
    crashes = 0
    # The window moves after 64 tokens, and 49 are read again.
    for at in (*range(1, 64, 7), *range(60, 126, 3)):
        for prompt, expected in zip(prompts, fresh, strict=True):
            backend.countdown = at
            try:
                engine.generate(PROMPT, options)
            except _Crash:
                crashes += 1
            backend.countdown = 10**9
            assert engine.generate(prompt, DRAWN).choices == expected, at
            assert len(backend.slots) == 1
    assert crashes > 80


def test_a_crash_while_a_prompt_is_read_leaves_a_true_cache(crashing: tuple[Engine, _Crashing]) -> None:
    """What was remembered of the text before must not count for the tokens already replaced."""
    engine, backend = crashing
    before, other = [*range(40)], [*range(5), *range(100, 135)]
    expected = engine.generate(before, DRAWN).choices
    for at in range(1, 30, 4):
        backend.countdown = at
        with pytest.raises(_Crash):
            engine.generate(other, DRAWN)
        backend.countdown = 10**9
        found = engine.generate(before, DRAWN)
        assert found.stats.cached_tokens == 5 and found.choices == expected


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_crash_frees_the_slots(crashing: tuple[Engine, _Crashing], sequences: int) -> None:
    """All but the one that is kept."""
    engine, backend = crashing
    options = replace(DRAWN, num_return_sequences=sequences)
    expected = engine.generate(PROMPT, options).choices
    for at in range(1, 16, 3):
        backend.countdown = at
        with pytest.raises(_Crash):
            engine.generate("Twice", options)
        backend.countdown = at
        with pytest.raises(_Crash):
            engine.generate(["Twice", "Thrice", "x"], options)
        backend.countdown = 10**9
        assert len(backend.slots) == 1
    assert engine.generate(PROMPT, options).choices == expected
