"""Other architectures than GPT-2 give transformers' own logits and ids, whatever is read, cut and copied."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_models import CONFIGS, CONTEXT, FAST, OTHERS, VOCAB, write_family
from support import series, some_slow

from gpt2cli.core.backend import Batch
from gpt2cli.core.engine import Engine
from gpt2cli.core.torch_model import whole_texts
from gpt2cli.core.transformers_lm import TransformersBackend
from gpt2cli.errors import ModelFileError, PromptTooLong, UsageError
from gpt2cli.families import FamilyConfig
from gpt2cli.options import GenerateOptions, LoadOptions

TOLERANCE = 1e-4
NEW_TOKENS = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """One model as both sides loaded it."""

    kind: str
    ours: Engine
    theirs: Any

    @property
    def backend(self) -> TransformersBackend:
        assert isinstance(self.ours.backend, TransformersBackend)
        return self.ours.backend

    def expected(self, ids: list[int]) -> torch.Tensor:
        """[T, V]"""
        with torch.inference_mode():
            found: torch.Tensor = self.theirs(torch.tensor([ids])).logits[0]
        return found


def load(directory: Path, **options: Any) -> Engine:
    return Engine.load(directory, LoadOptions(**{"device": "cpu", "threads": 1, **options}))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    @cache
    def made(kind: str) -> Pair:
        directory = tmp_path_factory.mktemp(kind)
        theirs = write_family(directory, kind, tokenizer=False)
        return Pair(kind, load(directory), theirs)

    return made


@pytest.fixture(params=some_slow(CONFIGS, len(FAST)))
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


def some_ids(count: int, seed: int = 0) -> list[int]:
    return [random.Random(seed + n).randrange(3, VOCAB) for n in range(count)]


def close(ours: Any, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(np.asarray(ours)), theirs, rtol=0, atol=TOLERANCE)


def test_logits(pair: Pair) -> None:
    """Two texts of different lengths in one batch, at every place."""
    backend, one, other = pair.backend, some_ids(40), some_ids(17, seed=50)
    slots = [backend.new_slot(), backend.new_slot()]
    batch = Batch.of([(slots[0], 0, one), (slots[1], 0, other)], wanted=range(57))
    close(backend.forward(batch), torch.cat([pair.expected(one), pair.expected(other)]))


def test_chunks_rewinds_and_copies(pair: Pair) -> None:
    """A text in parts, texts side by side, rewinds to any place, copies of a part: the whole's logits."""
    backend, pick = pair.backend, random.Random(pair.kind)
    texts: dict[int, list[int]] = {backend.new_slot(): []}
    for step in range(series(60, 24)):
        slot = pick.choice([*texts])
        what = pick.random()
        if what < 0.25 and texts[slot] and len(texts) < 4:
            kept = pick.randint(1, len(texts[slot]))
            copy = backend.new_slot()
            backend.copy_slot(slot, copy, kept)
            texts[copy] = texts[slot][:kept]
        parts, expected = [], []
        for each in {slot, pick.choice([*texts])}:
            held = texts[each]
            present = pick.randint(0, len(held)) if what > 0.6 else len(held)
            new = some_ids(pick.choice([1, 1, 2, 7, 20]), seed=100 * step + each)
            if present + len(new) > CONTEXT:
                present = 0
            texts[each] = [*held[:present], *new]
            parts.append((each, present, new))
            expected.append(pair.expected(texts[each])[present:])
        count = sum(len(ids) for *_, ids in parts)
        close(backend.forward(Batch.of(parts, wanted=range(count))), torch.cat(expected))
    for slot in texts:
        backend.free_slot(slot)


def test_a_pass_that_was_interrupted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers have read the tokens, others not: the text is read anew."""
    backend, ids = pair.backend, some_ids(20)
    slot = backend.new_slot()
    backend.forward(Batch.of([(slot, 0, ids[:10])]))
    last = [*pair.backend.model._model.modules()][-2]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        backend.forward(Batch.of([(slot, 10, ids[10:12])]))
    hook.remove()
    close(backend.forward(Batch.of([(slot, 10, ids[10:])])), pair.expected(ids)[-1:])
    backend.free_slot(slot)


def test_no_logits_wanted(pair: Pair) -> None:
    backend, ids = pair.backend, some_ids(12)
    slot = backend.new_slot()
    assert backend.forward(Batch.of([(slot, 0, ids[:8])], wanted=[])).shape == (0, VOCAB)
    close(backend.forward(Batch.of([(slot, 8, ids[8:])])), pair.expected(ids)[-1:])


def generated(pair: Pair, prompt: list[int], **options: Any) -> list[list[int]]:
    """What transformers' `generate` continues each row with, up to its end-of-text."""
    ids = torch.tensor([prompt])
    rows = pair.theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    found = []
    for row in rows[:, len(prompt) :].tolist():
        end = row.index(2) if 2 in row else len(row)
        found.append(row[:end])
    return found


def repetition(pick: random.Random) -> dict[str, Any]:
    return {
        "repetition_penalty": pick.choice([1.0, 1.0, 1.3, 0.8]),
        "no_repeat_ngram_size": pick.choice([0, 0, 2, 3]),
    }


CASES = series(20, 4)


def test_greedy_ids(pair: Pair) -> None:
    for number in range(CASES):
        pick = random.Random(number)
        prompt, options = some_ids(pick.randint(1, 30), seed=1000 * number), repetition(pick)
        theirs = generated(pair, prompt, do_sample=False, max_new_tokens=NEW_TOKENS, **options)
        ours = pair.ours.generate(
            prompt, GenerateOptions(temperature=0, max_new_tokens=NEW_TOKENS, **options)
        )
        assert [ours.choices[0].token_ids] == theirs


def test_sampled_ids(pair: Pair) -> None:
    for number in range(CASES):
        pick = random.Random(number)
        prompt, seed = some_ids(pick.randint(1, 30), seed=1000 * number), pick.randrange(2**32)
        options = {
            "max_new_tokens": NEW_TOKENS,
            "num_return_sequences": pick.choice([1, 3]),
            "temperature": pick.choice([1.0, 0.5, 1.6]),
            "top_k": pick.choice([0, 3, 50]),
            "top_p": pick.choice([1.0, 0.9, 0.3]),
            "min_p": pick.choice([0.0, 0.0, 0.05]),
            "typical_p": pick.choice([1.0, 1.0, 0.6]),
            **repetition(pick),
        }
        transformers.set_seed(seed)
        theirs = generated(pair, prompt, do_sample=True, **options)
        ours = pair.ours.generate(prompt, GenerateOptions(rng="transformers", seed=seed, **options))
        assert [choice.token_ids for choice in ours.choices] == theirs


def test_prompts_of_a_list(pair: Pair) -> None:
    """Texts of different lengths take their steps together."""
    prompts = [some_ids(count, seed=count) for count in (3, 41, 17, 60)]
    options = GenerateOptions(temperature=0, max_new_tokens=NEW_TOKENS)
    together = pair.ours.generate(prompts, options)
    alone = [generated(pair, prompt, do_sample=False, max_new_tokens=NEW_TOKENS) for prompt in prompts]
    assert [[result.choices[0].token_ids] for result in together] == alone


def test_the_next_prompt_begins_alike(pair: Pair) -> None:
    """What the last text left behind is gone on from, cut off, or read again: the ids are the same."""
    options = GenerateOptions(temperature=0, max_new_tokens=NEW_TOKENS)
    prompt = some_ids(12, seed=5)
    drawn = pair.ours.generate(prompt, options).choices[0].token_ids
    for after in ([*prompt, *drawn, 9, 8, 7], prompt[:7], [*prompt[:5], 3, 3]):
        theirs = generated(pair, after, do_sample=False, max_new_tokens=NEW_TOKENS)
        assert [pair.ours.generate(after, options).choices[0].token_ids] == theirs


def test_the_window_slides(pair: Pair) -> None:
    """A text longer than the context goes on."""
    if pair.ours.config.n_positions > CONTEXT:
        pytest.skip("its context is long")
    options = GenerateOptions(seed=4, max_new_tokens=CONTEXT + 20, overflow="slide", ignore_eos=True)
    assert len(pair.ours.generate([5, 6], options).choices[0].token_ids) == CONTEXT + 20
    with pytest.raises(PromptTooLong):
        pair.ours.generate(some_ids(CONTEXT), GenerateOptions(max_new_tokens=3))


def test_drafts_change_nothing(pair: Pair) -> None:
    """Guessed tokens are verified and taken back; what cannot go back is not guessed for."""
    options = GenerateOptions(temperature=0, max_new_tokens=40, ignore_eos=True)
    prompt = [7, 8, 9, 7, 8, 9, 7, 8]
    without = pair.ours.generate(prompt, replace(options, draft="off"))
    result = pair.ours.generate(prompt, replace(options, draft="lookup"))
    assert result.choices[0].token_ids == without.choices[0].token_ids
    if pair.ours.info.cache == "keys-values":
        pair.ours.draft_with(pair.ours)
        by_model = pair.ours.generate(prompt, replace(options, draft="itself"))
        pair.ours.draft_with(None)
        assert by_model.choices[0].token_ids == without.choices[0].token_ids
        assert by_model.stats.accepted > 0
    else:
        assert result.stats.drafted == 0
        with pytest.raises(UsageError, match="cannot guess ahead"):
            pair.ours.draft_with(pair.ours)


def test_what_a_slot_holds(pairs: Callable[[str], Pair]) -> None:
    assert pairs("llama").ours.info.cache == "keys-values"
    assert pairs("mamba").ours.info.cache == "recurrent"
    # Two layers, keys and values of two heads that are eight wide, in fp32.
    assert pairs("llama").backend.bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert pairs("mamba").backend.bytes_per_token == 0


def test_hidden_states(pair: Pair) -> None:
    """What is observed is what transformers returns; the logits of states are those of the model."""
    model, texts = pair.backend.model, [some_ids(9), some_ids(9, seed=30), some_ids(4, seed=60)]
    seen: dict[str, torch.Tensor] = {}
    hidden = model.hidden_states(whole_texts(texts), observe=seen.__setitem__)
    close(model.logits(hidden), torch.cat([pair.expected(text) for text in texts]))
    with torch.inference_mode():
        found = [pair.theirs(torch.tensor([text]), output_hidden_states=True) for text in texts]
    for number, name in enumerate(("embeddings", "h.0.output", "ln_f")):
        close(seen[name], torch.cat([each.hidden_states[number][0] for each in found]))


def test_attention_weights(pair: Pair) -> None:
    model, text = pair.backend.model, some_ids(9)
    seen: dict[str, torch.Tensor] = {}

    def look() -> None:
        model.hidden_states(whole_texts([text]), observe=seen.__setitem__, attention=[1])

    if pair.kind == "mamba":
        with pytest.raises(UsageError, match="no attention weights"):
            look()
        return
    look()
    weights = seen["h.1.attn.weights"]
    assert weights.shape == (4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 9), rtol=0, atol=TOLERANCE)
    assert float(weights.triu(1).abs().max()) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    """They are close to fp32, and a bf16 checkpoint is read in all of them."""
    write_family(tmp_path, "llama", tokenizer=False, dtype="bfloat16")
    ids = some_ids(20)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    exact, ours = load(tmp_path), load(tmp_path, precision=precision)
    assert (exact.info.precision, ours.info.precision) == ("fp32", precision)
    batch = Batch.of([(0, 0, ids)], wanted=range(20))
    for engine, tolerance in ((exact, TOLERANCE), (ours, 0.1 * float(expected.abs().max()))):
        engine.backend.new_slot()
        found = torch.from_numpy(engine.backend.forward(batch))
        assert float((found - expected).abs().max()) < tolerance


def test_what_is_of_gpt2_only(tmp_path: Path) -> None:
    write_family(tmp_path, "llama", tokenizer=False)
    for options in ({"precision": "int8"}, {"precision": "int4"}, {"backend": "native"}):
        with pytest.raises(UsageError, match=r"GPT-2 only, and the model is of type llama"):
            load(tmp_path, **options)


@pytest.mark.parametrize("kind", some_slow(OTHERS, 1))
def test_an_architecture_of_no_known_family(kind: str, tmp_path: Path) -> None:
    theirs = write_family(tmp_path, kind, tokenizer=False)
    pair = Pair(kind, load(tmp_path), theirs)
    assert isinstance(pair.ours.config, FamilyConfig) and not pair.ours.config.tested
    test_logits(pair)
    test_chunks_rewinds_and_copies(pair)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    """BERT has a class for causal language models, and without ``is_decoder`` attends to what comes later."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **shape)
    torch.manual_seed(0)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="gpt2cli cannot run models of type bert"):
        load(tmp_path)
