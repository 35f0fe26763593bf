"""Other architectures than GPT-2 give transformers' own logits and ids, whatever is read, kept, cut and copied."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
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
from gpt2cli.core.transformers_lm import TransformersBackend
from gpt2cli.errors import ModelFileError, PromptTooLong, UsageError
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
    @lru_cache(maxsize=None)
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
    """A text in parts, texts side by side, rewinds to any place, copies of a part: always the whole's logits."""
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
