"""The engine: what a stream holds, how it ends, which prompts it takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import BACKENDS, END_OF_TEXT_ID, load_on, make_model, native_available

from gpt2cli.core.engine import Engine
from gpt2cli.core.results import Chunk, new_choices
from gpt2cli.core.torch_model import whole_texts
from gpt2cli.errors import InvalidOption, ModelFileError, PromptTooLong, UsageError
from gpt2cli.options import GenerateOptions, LoadOptions

CONTEXT = 64
PROMPT = "Once upon"
DRAWN = GenerateOptions(seed=5, max_new_tokens=20, ignore_eos=True)


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> Engine:
    engine: Engine = load_on(request.param, tiny_model)
    return engine


def _ids(engine: Engine, options: GenerateOptions, prompt: str = PROMPT) -> list[list[int]]:
    return [choice.token_ids for choice in engine.generate(prompt, options).choices]


class TestStream:
    @pytest.mark.parametrize("sequences", [1, 3])
    def test_generate_is_the_joined_stream(self, tiny_model: Path, sequences: int) -> None:
        streaming, engine = Engine.load(tiny_model), Engine.load(tiny_model)
        options = replace(DRAWN, num_return_sequences=sequences, logprobs=2)
        choices = new_choices(options)
        for chunk in streaming.stream(PROMPT, options):
            choices[chunk.sequence].add(chunk)
        result = engine.generate(PROMPT, options)
        assert result.choices == choices and str(result) == result.text == choices[0].text
        assert [choice.index for choice in choices] == [*range(sequences)]
        assert [choice.seed for choice in choices] == [5 + n for n in range(sequences)]

    def test_the_shape_of_a_stream(self, engine: Engine) -> None:
        """A chunk a token, an end a sequence, and the statistics once, at the very end."""
        *chunks, last = engine.stream(PROMPT, replace(DRAWN, num_return_sequences=2))
        assert last.stats is not None and last.token is None and last.finish_reason is None
        assert all(chunk.stats is None for chunk in chunks)
        for sequence in range(2):
            *own, end = [chunk for chunk in chunks if chunk.sequence == sequence]
            assert end.finish_reason == "length" and end.token is None
            assert len(own) == 20 and all(chunk.token is not None for chunk in own)
            assert all(chunk.finish_reason is None and chunk.logprob is None for chunk in own)

    def test_text_is_the_decoded_ids(self, engine: Engine) -> None:
        """Random bytes: characters that never become whole are shown as in the full decode."""
        assert engine.tokenizer is not None
        for choice in engine.generate(PROMPT, replace(DRAWN, num_return_sequences=8)).choices:
            assert choice.text == engine.tokenizer.decode(choice.token_ids)
            assert len(choice.text) > 5

    def test_statistics(self, engine: Engine) -> None:
        started = time.perf_counter()
        result = engine.generate(PROMPT, replace(DRAWN, num_return_sequences=2))
        took, stats = time.perf_counter() - started, result.stats
        assert (stats.prompt_tokens, stats.completion_tokens) == (len(PROMPT), 40)
        assert (stats.dropped_tokens, stats.cached_tokens) == (0, 0)
        assert 0 < stats.prefill_s <= stats.first_token_s <= took
        assert stats.tokens_per_s == pytest.approx(38 / stats.decode_s)

    def test_one_token_has_no_rate(self, engine: Engine) -> None:
        assert engine.generate(PROMPT, replace(DRAWN, max_new_tokens=1)).stats.tokens_per_s is None

    def test_a_second_stream_ends_the_first(self, engine: Engine) -> None:
        """They share one cache: the first would go on with the second one's keys."""
        expected = _ids(engine, DRAWN)
        first = engine.stream("something else", DRAWN)
        next(first)
        second = engine.stream(PROMPT, DRAWN)
        assert [*first] == []
        assert [chunk.token for chunk in second if chunk.token is not None] == expected[0]

    def test_a_stream_never_read_does_no_harm(self, engine: Engine) -> None:
        engine.stream("something else", DRAWN)
        assert _ids(engine, DRAWN) == _ids(engine, DRAWN)

    def test_a_refused_prompt_leaves_the_open_stream_alone(self, engine: Engine) -> None:
        expected = _ids(engine, DRAWN)
        stream = engine.stream(PROMPT, DRAWN)
        found = [next(stream)]
        with pytest.raises(PromptTooLong):
            engine.stream("x" * CONTEXT)
        found += stream
        assert [chunk.token for chunk in found if chunk.token is not None] == expected[0]

    def test_logprobs_are_before_any_filter(self, engine: Engine) -> None:
        options = replace(DRAWN, logprobs=3, temperature=0.3, top_k=2, repetition_penalty=1.5)
        choice = engine.generate(PROMPT, options).choices[0]
        ids = [*engine.encode(PROMPT), *choice.token_ids]
        logits = engine.model.logits(engine.model.hidden_states(whole_texts([ids])))
        expected = logits.log_softmax(dim=-1)[len(PROMPT) - 1 : -1]
        for row, token, found in zip(expected, choice.token_ids, choice.logprobs, strict=True):
            assert found.logprob == pytest.approx(float(row[token]), abs=1e-5)
            values, top = row.topk(3)
            assert [t for t, _ in found.top] == top.tolist()
            assert [v for _, v in found.top] == pytest.approx(values.tolist(), abs=1e-5)


class TestEndings:
    def test_length(self, engine: Engine) -> None:
        choice = engine.generate(PROMPT, DRAWN).choices[0]
        assert (choice.finish_reason, len(choice.token_ids)) == ("length", 20)

    def test_128_new_tokens_when_nothing_is_said(self, tmp_path: Path) -> None:
        engine = Engine.load(make_model(tmp_path, n_positions=256))
        choice = engine.generate(PROMPT, GenerateOptions(seed=1, ignore_eos=True)).choices[0]
        assert (choice.finish_reason, len(choice.token_ids)) == ("length", 128)

    def test_context(self, engine: Engine) -> None:
        choice = engine.generate(PROMPT, replace(DRAWN, max_new_tokens=1000)).choices[0]
        assert (choice.finish_reason, len(choice.token_ids)) == ("context", CONTEXT - len(PROMPT))

    def test_max_length_counts_the_prompt(self, engine: Engine) -> None:
        options = replace(DRAWN, max_new_tokens=None, max_length=30)
        choice = engine.generate(PROMPT, options).choices[0]
        assert (choice.finish_reason, len(choice.token_ids)) == ("length", 30 - len(PROMPT))
        with pytest.raises(InvalidOption, match=r"max-length: the prompt alone has 9 tokens"):
            engine.generate(PROMPT, replace(options, max_length=9))

    @pytest.mark.parametrize("several", [True, False])
    def test_eos(self, tmp_path: Path, several: bool) -> None:
        """One id or a list of them; the token itself is not part of what was generated."""
        plain = Engine.load(make_model(tmp_path / "plain", eos_token_id=None))
        whole = plain.generate(PROMPT, DRAWN).choices[0].token_ids
        eos = [whole[15], whole[6]] if several else whole[6]
        engine = Engine.load(make_model(tmp_path / "eos", eos_token_id=eos))
        options = replace(DRAWN, ignore_eos=False)
        choice, end = (
            engine.generate(PROMPT, options).choices[0],
            min(map(whole.index, (whole[15], whole[6]))),
        )
        assert choice.finish_reason == "eos" and choice.token_ids == whole[: end if several else 6]
        assert choice.text == engine.tokenizer.decode(choice.token_ids)  # type: ignore[union-attr]
        ignored = engine.generate(PROMPT, DRAWN).choices[0]
        assert (ignored.finish_reason, ignored.token_ids) == ("length", whole)

    def test_eos_as_the_first_token(self, tmp_path: Path) -> None:
        engine = Engine.load(make_model(tmp_path, eos_token_id=[*range(257)]))
        result = engine.generate(PROMPT, GenerateOptions(seed=0))
        assert (result.text, result.choices[0].token_ids) == ("", [])
        assert result.choices[0].finish_reason == "eos"
        assert result.stats.completion_tokens == 0 and result.stats.tokens_per_s is None

    def test_the_eos_of_generation_config_comes_first(self, tmp_path: Path) -> None:
        directory = make_model(tmp_path, eos_token_id=1, generation={"eos_token_id": [*range(2, 257)]})
        assert Engine.load(directory).config.eos_token_ids == tuple(range(2, 257))

    def _stop(self, text: str) -> str:
        """Two characters that lie somewhere inside ``text``, each a token of its own."""
        return next(
            text[at : at + 2]
            for at in range(4, len(text))
            if text[at : at + 2].isascii() and at + 2 < len(text)
        )

    def test_stop(self, engine: Engine) -> None:
        """Over two tokens; the text ends before it, the ids go on to where it was complete."""
        options = replace(DRAWN, max_new_tokens=50)
        whole = engine.generate(PROMPT, options)
        stop = self._stop(whole.text)
        found = engine.generate(PROMPT, replace(options, stop=("never there", stop)))
        assert found.choices[0].finish_reason == "stop"
        assert found.text == whole.text[: whole.text.index(stop)]
        ids = found.choices[0].token_ids
        assert ids == whole.choices[0].token_ids[: len(ids)]
        assert engine.tokenizer is not None and engine.tokenizer.decode(ids).endswith(stop)

    def test_a_stop_ends_its_own_sequence_only(self, engine: Engine) -> None:
        options = replace(DRAWN, max_new_tokens=50, num_return_sequences=3)
        whole = engine.generate(PROMPT, options).choices
        stop = self._stop(whole[1].text)
        found = engine.generate(PROMPT, replace(options, stop=(stop,))).choices
        assert found[1].finish_reason == "stop"
        for before, after in zip(whole, found, strict=True):
            assert after.text == before.text.split(stop)[0]

    def test_a_stop_with_the_last_token_is_a_stop(self, engine: Engine) -> None:
        options = replace(DRAWN, max_new_tokens=50)
        whole = engine.generate(PROMPT, options).text
        stopped = engine.generate(PROMPT, replace(options, stop=(self._stop(whole),))).choices[0]
        exactly = replace(options, max_new_tokens=len(stopped.token_ids), stop=(self._stop(whole),))
        assert engine.generate(PROMPT, exactly).choices[0] == stopped

    def test_what_was_held_back_comes_out_at_the_end(self, engine: Engine) -> None:
        """The text ends with the beginning of a stop that never came."""
        whole = engine.generate(PROMPT, DRAWN).text
        found = engine.generate(PROMPT, replace(DRAWN, stop=(whole[-3:] + "and more",)))
        assert (found.text, found.choices[0].finish_reason) == (whole, "length")

    @pytest.mark.parametrize("sequences", [1, 3])
    def test_interrupt(self, engine: Engine, sequences: int) -> None:
        """Every sequence ends, with the text so far; the next stream is not affected."""
        options = replace(DRAWN, num_return_sequences=sequences)
        whole, chunks = engine.generate(PROMPT, options), []
        for chunk in engine.stream(PROMPT, options):
            chunks.append(chunk)
            if len(chunks) == 10:
                engine.interrupt()
        choices = new_choices(options)
        for chunk in chunks:
            choices[chunk.sequence].add(chunk)
        assert chunks[-1].stats is not None
        assert sum(len(choice.token_ids) for choice in choices) == 10
        assert chunks[-1].stats.completion_tokens == 10
        for choice, full in zip(choices, whole.choices, strict=True):
            assert choice.finish_reason == "interrupted"
            assert full.token_ids[: len(choice.token_ids)] == choice.token_ids
            assert engine.tokenizer is not None
            assert choice.text == engine.tokenizer.decode(choice.token_ids)
        assert engine.generate(PROMPT, options).choices == whole.choices

    def test_an_interrupt_between_streams_is_forgotten(self, engine: Engine) -> None:
        engine.interrupt()
        assert engine.generate(PROMPT, DRAWN).choices[0].finish_reason == "length"


class TestOverflow:
    LONG = "".join(chr(ord("a") + n % 26) for n in range(100))

    def test_error_leaves_room_for_one_token(self, engine: Engine) -> None:
        """A prompt is refused only where not a single token fits."""
        found = engine.generate(self.LONG[: CONTEXT - 1], DRAWN)
        assert found.choices[0].finish_reason == "context" and len(found.choices[0].token_ids) == 1
        with pytest.raises(
            PromptTooLong, match="the prompt has 64 tokens; the model's context is 64"
        ) as caught:
            engine.stream(self.LONG[:CONTEXT], DRAWN)
        assert caught.value.exit_code == 6
        assert caught.value.hint is not None and "--overflow truncate" in caught.value.hint

    def test_error_before_tokenising(self, engine: Engine) -> None:
        """Ten million characters are refused by their number."""
        started = time.perf_counter()
        with pytest.raises(PromptTooLong, match="10000000 characters"):
            engine.stream("x" * 10_000_000)
        assert time.perf_counter() - started < 1

    @pytest.mark.parametrize(
        ("length", "new", "dropped", "reason"),
        [
            (100, 10, 46, "length"),
            (100, 1000, 68, "context"),
            (60, 10, 6, "length"),
            (54, 10, 0, "length"),
            (50, 1000, 18, "context"),
            (10, 1000, 0, "context"),
        ],
    )
    def test_truncate(self, engine: Engine, length: int, new: int, dropped: int, reason: str) -> None:
        """The oldest tokens go, until min(new, half the context) fit."""
        options = replace(DRAWN, max_new_tokens=new, overflow="truncate")
        result = engine.generate(self.LONG[:length], options)
        assert result.stats.dropped_tokens == dropped and result.stats.prompt_tokens == length
        assert result.choices[0].finish_reason == reason
        assert len(result.choices[0].token_ids) == min(new, CONTEXT - (length - dropped))

    def test_truncating_does_not_reset_the_position(self, engine: Engine) -> None:
        """The same end of a prompt, alone and after a cut: other random numbers, as in any longer text."""
        options = replace(DRAWN, max_new_tokens=10, overflow="truncate", top_k=0)
        cut, alone = (
            engine.generate(text, options).choices[0].token_ids for text in (self.LONG, self.LONG[46:])
        )
        assert cut != alone
        greedy = replace(options, temperature=0)
        cut, alone = (
            engine.generate(text, greedy).choices[0].token_ids for text in (self.LONG, self.LONG[46:])
        )
        assert cut == alone

    @pytest.mark.parametrize(("length", "dropped"), [(9, 0), (64, 32), (100, 68)])
    def test_slide(self, engine: Engine, length: int, dropped: int) -> None:
        options = replace(DRAWN, max_new_tokens=150, overflow="slide")
        result = engine.generate(self.LONG[:length], options)
        assert (result.choices[0].finish_reason, len(result.choices[0].token_ids)) == ("length", 150)
        kept = length - dropped
        moves = -(-(kept + 149 - CONTEXT) // (CONTEXT // 4))
        assert result.stats.dropped_tokens == dropped + moves * (CONTEXT // 4)

    def test_slide_begins_as_a_larger_context_would(self, engine: Engine) -> None:
        """Until the window moves, sliding is generating as ever."""
        sliding = _ids(engine, replace(DRAWN, max_new_tokens=150, overflow="slide"))[0]
        plain = _ids(engine, replace(DRAWN, max_new_tokens=150))[0]
        assert sliding[: len(plain)] == plain

    def test_several_sequences_slide(self, engine: Engine) -> None:
        options = replace(DRAWN, max_new_tokens=150, overflow="slide", num_return_sequences=3)
        together = _ids(engine, options)
        alone = [_ids(engine, replace(options, seed=5 + n, num_return_sequences=1))[0] for n in range(3)]
        assert together == alone

    def test_a_full_prompt_can_slide(self, engine: Engine) -> None:
        """With nothing to be said about room: a prompt of the whole context, one new token."""
        options = replace(DRAWN, max_new_tokens=1, overflow="slide")
        assert engine.generate(self.LONG[:CONTEXT], options).stats.dropped_tokens == 1

    def test_a_context_of_one(self, tmp_path: Path) -> None:
        engine = Engine.load(make_model(tmp_path, tokenizer=None, n_positions=1))
        found = engine.generate([1, 2, 3], replace(DRAWN, overflow="slide"))
        assert len(found.choices[0].token_ids) == 20
        with pytest.raises(PromptTooLong):
            engine.generate([1, 2, 3], replace(DRAWN, overflow="truncate"))


class TestPrompts:
    def test_ids_or_text(self, engine: Engine) -> None:
        ids = engine.encode(PROMPT)
        assert engine.generate(ids, DRAWN).choices == engine.generate(PROMPT, DRAWN).choices

    def test_an_empty_text_begins_with_bos(self, engine: Engine) -> None:
        assert engine.encode("") == [END_OF_TEXT_ID]
        expected = engine.generate([END_OF_TEXT_ID], DRAWN)
        assert engine.generate("", DRAWN).choices == expected.choices

    def test_an_empty_text_without_bos(self, tmp_path: Path) -> None:
        engine = Engine.load(make_model(tmp_path, bos_token_id=None))
        with pytest.raises(UsageError, match="the prompt is empty, and the model has no token"):
            engine.stream("")

    @pytest.mark.parametrize("ids", [[], [257], [-1], [1, 10**9]], ids=str)
    def test_ids_that_the_model_does_not_have(self, engine: Engine, ids: list[int]) -> None:
        with pytest.raises(UsageError, match="the prompt has"):
            engine.stream(ids)

    def test_end_of_text_is_text_unless_asked(self, engine: Engine) -> None:
        text = "a<|endoftext|>"
        assert len(engine.encode(text)) == len(text)
        assert engine.encode(text, special_tokens=True) == [engine.encode("a")[0], END_OF_TEXT_ID]
        options = replace(DRAWN, special_tokens=True)
        assert engine.generate(text, options).stats.prompt_tokens == 2

    def test_errors_come_before_the_first_chunk(self, engine: Engine) -> None:
        """When the stream is opened, and not when it is first read."""
        for prompt, error in (("x" * 70, PromptTooLong), ([300], UsageError), ([], UsageError)):
            with pytest.raises(error):
                engine.stream(prompt, DRAWN)  # type: ignore[arg-type]


class TestWithoutTokenizer:
    @pytest.fixture
    def bare(self, tmp_path: Path) -> Engine:
        return Engine.load(make_model(tmp_path, tokenizer=None))

    def test_ids_to_ids(self, bare: Engine, engine: Engine) -> None:
        ids = engine.encode(PROMPT)
        found, expected = bare.generate(ids, DRAWN), engine.generate(ids, DRAWN)
        assert bare.tokenizer is None and found.text == ""
        assert found.choices[0].token_ids == expected.choices[0].token_ids

    def test_text_is_refused(self, bare: Engine) -> None:
        with pytest.raises(ModelFileError, match="it has no tokenizer") as caught:
            bare.stream(PROMPT)
        assert caught.value.hint is not None


class TestLoading:
    def test_the_models_own_defaults(self, tmp_path: Path) -> None:
        """generation_config.json counts where nothing else is said."""
        generation = {"temperature": 0.5, "top_k": 3, "max_new_tokens": 7, "transformers_version": "5"}
        engine = Engine.load(make_model(tmp_path, generation=generation))
        assert engine.options() == GenerateOptions(temperature=0.5, top_k=3, max_new_tokens=7)
        assert engine.options(top_k=9).top_k == 9
        assert engine.options(max_length=20) == GenerateOptions(temperature=0.5, top_k=3, max_length=20)
        result = engine.generate(PROMPT)
        assert replace(result.options, seed=None) == engine.options()

    def test_a_device_that_is_not_there(self, tiny_model: Path) -> None:
        absent = "mps" if torch.cuda.is_available() else "cuda"
        with pytest.raises(UsageError, match=f"--device {absent}: there is no such device"):
            Engine.load(tiny_model, LoadOptions(device=absent))  # type: ignore[arg-type]

    def test_threads(self, tiny_model: Path) -> None:
        before = torch.get_num_threads()
        try:
            engine = Engine.load(tiny_model, LoadOptions(threads=1))
            assert engine.info.threads == 1 and engine.load_s > 0
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("backend", ["auto", "native", "torch"])
    def test_auto_precision(self, tiny_model: Path, backend: str) -> None:
        """16 bits where that is faster, and lossless in practice."""
        if backend == "native" and not native_available():
            pytest.skip("the native library is not available")
        info = Engine.load(tiny_model, LoadOptions(device="cpu", backend=backend)).info  # type: ignore[arg-type]
        native = native_available() and backend != "torch"
        assert info.precision == ("fp16" if native else "fp32")
        assert any("torch" in kernel for kernel in info.kernels) != native

    def test_the_native_library_can_be_turned_off(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPT2CLI_NATIVE", "0")
        engine = Engine.load(tiny_model, LoadOptions(device="cpu"))
        assert engine.info.precision == "fp32" and engine.backend is not None
        assert engine.info.kernels == Engine.load(tiny_model, LoadOptions(backend="torch")).info.kernels

    def test_the_model_is_the_torch_one(self, engine: Engine) -> None:
        """For what looks inside; whatever backend runs."""
        assert engine.model.config == engine.config
        assert engine.model is engine.model


def test_a_chunk_has_its_logprob() -> None:
    assert Chunk(0).logprob is None
