"""Our forward pass and our decoding are those of transformers, over random tiny models, on both backends.

Every case is a model of its own shape, switches, file layout and type on disk; the reference is
``GPT2LMHeadModel`` in eval mode and fp32, given the same values.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import (
    OWN_BACKENDS,
    backend_logits,
    load_on,
    make_model,
    random_weights,
    some_slow,
    write_json,
    write_weights,
)
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.checkpoint import ACTIVATIONS
from gpt2cli.core.backend import Batch
from gpt2cli.core.engine import Engine
from gpt2cli.options import GenerateOptions

TOLERANCE = 1e-4
CASES = 220
NEW_TOKENS = 12
CONTEXT = 40


@dataclass(frozen=True, slots=True)
class Case:
    """One model, and how it lies on disk."""

    number: int
    config: dict[str, Any]
    dtype: str
    shards: int
    prefix: str
    by_transformers: bool
    attention: str

    def __str__(self) -> str:
        shape = "x".join(str(self.config[key]) for key in ("vocab_size", "n_embd", "n_layer", "n_head"))
        return f"{self.number}-{shape}-{self.config['activation_function']}-{self.dtype}"


def _make_case(number: int) -> Case:
    pick = random.Random(number)
    heads, layers = pick.randint(1, 5), pick.randint(1, 4)
    width = heads * pick.choice([2, 3, 5, 8, 12, 16]) if heads > 1 else pick.choice([4, 7, 16, 24])
    vocab = pick.choice([5, 16, 33, 64, 257, 701, pick.randint(6, 700)])
    config = {
        "vocab_size": vocab,
        "n_positions": CONTEXT,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": pick.choice([None, None, 1, 17, 64, 3 * width]),
        "activation_function": ACTIVATIONS[number % len(ACTIVATIONS)],
        "layer_norm_epsilon": pick.choice([1e-5, 1e-5, 1e-6, 1e-3, 0.1]),
        "scale_attn_weights": pick.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": pick.random() < 0.4,
        "reorder_and_upcast_attn": pick.random() < 0.4,
        "tie_word_embeddings": pick.random() < 0.6,
        "bos_token_id": pick.choice([None, 0, vocab - 1]),
        "eos_token_id": pick.choice([None, vocab - 1, pick.sample(range(vocab), max(2, vocab // 12))]),
    }
    return Case(
        number=number,
        config=config,
        dtype=pick.choice(["float32", "float32", "float16", "bfloat16"]),
        shards=pick.choice([1, 1, 3]),
        prefix=pick.choice(["transformer.", ""]),
        by_transformers=pick.random() < 0.3,
        attention=pick.choice(["sdpa", "eager"]),
    )


ALL_CASES = [_make_case(number) for number in range(CASES)]


class Reference:
    """A case in ``directory`` and in transformers; each answer is computed once, for both backends."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.directory = directory
        self._model = _write(case, directory)
        self._answers: dict[str, torch.Tensor] = {}

    def _once(self, question: object, answer: Callable[[], torch.Tensor]) -> torch.Tensor:
        key = repr(question)
        if key not in self._answers:
            self._answers[key] = answer()
        return self._answers[key]

    def logits(self, *texts: list[int]) -> torch.Tensor:
        """[B, T, V]"""
        with torch.inference_mode():
            return self._once(texts, lambda: self._model(torch.tensor(texts)).logits)

    def generate(self, prompt: list[int], *, seed: int = 0, **options: Any) -> torch.Tensor:
        def generated() -> torch.Tensor:
            transformers.set_seed(seed)
            return _generate(self._model, prompt, **options)

        return self._once((prompt, seed, options), generated)


@dataclass(frozen=True, slots=True)
class Pair:
    """A case as both sides loaded it."""

    case: Case
    ours: Engine
    theirs: Reference

    @property
    def pick(self) -> random.Random:
        """Fresh random choices, the same on every run."""
        return random.Random(f"prompts of {self.case.number}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Reference]:
    """Gives the `Reference` of a case, which is kept until that of another one is asked for."""

    @lru_cache(maxsize=1)
    def kept(number: int) -> Reference:
        return Reference(ALL_CASES[number], tmp_path_factory.mktemp("parity"))

    return kept


@pytest.fixture(
    scope="module",
    params=some_slow(itertools.product(ALL_CASES, OWN_BACKENDS), 60),
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def pair(request: pytest.FixtureRequest, reference: Callable[[int], Reference]) -> Iterator[Pair]:
    case, backend = request.param
    theirs = reference(case.number)
    ours = load_on(backend, theirs.directory)
    yield Pair(case, ours, theirs)
    ours.backend.close()


def _write(case: Case, directory: Path) -> GPT2LMHeadModel:
    """Write the model of ``case``; transformers' model of the same values."""
    tensors = random_weights(case.config, seed=case.number, std=0.15, dtype=case.dtype, prefix=case.prefix)
    config = GPT2Config(**case.config, attn_implementation=case.attention)
    theirs = GPT2LMHeadModel(config).eval().to(getattr(torch, case.dtype))
    head = tensors.get("lm_head.weight", tensors[f"{case.prefix}wte.weight"])
    names = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    state = {f"transformer.{name}": tensor for name, tensor in names.items() if name != "lm_head.weight"}
    theirs.load_state_dict({**state, "lm_head.weight": head})
    if case.by_transformers:
        theirs.save_pretrained(directory, max_shard_size="20KB" if case.shards > 1 else "50GB")
    else:
        write_json(directory / "config.json", {"model_type": "gpt2", **case.config})
        write_weights(directory, tensors, case.shards)
    return theirs.float()


def _ids(pick: random.Random, vocab_size: int, tokens: int) -> list[int]:
    return [pick.randrange(vocab_size) for _ in range(tokens)]


def _continuations(rows: torch.Tensor, prompt: list[int], eos: int | list[int] | None) -> list[list[int]]:
    """What transformers generated, without eos and padding."""
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    found = []
    for row in rows.tolist():
        new = row[len(prompt) :]
        found.append(new[: next((at for at, token in enumerate(new) if token in ends), len(new))])
    return found


def _generate(theirs: GPT2LMHeadModel, prompt: list[int], **options: Any) -> torch.Tensor:
    ids = torch.tensor([prompt])
    rows = theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    assert isinstance(rows, torch.Tensor)
    return rows


def _sampling_options(pick: random.Random, vocab_size: int) -> dict[str, Any]:
    """About half of the filters at once; some of them at their off value."""
    return {
        "temperature": pick.choice([1.0, 0.3, 0.7, 1.6]),
        "top_k": pick.choice([0, 1, 3, 50, vocab_size]) if pick.random() < 0.8 else 2 * vocab_size,
        "top_p": pick.choice([1.0, 1.0, 0.2, 0.9, 0.97]),
        "min_p": pick.choice([0.0, 0.0, 0.02, 0.3]),
        "typical_p": pick.choice([1.0, 1.0, 0.3, 0.9]),
        **_repetition_options(pick, vocab_size),
    }


def _repetition_options(pick: random.Random, vocab_size: int) -> dict[str, Any]:
    # In a small vocabulary short n-grams end up banning every token.
    sizes = [0, 0, 2, 3] if vocab_size > 30 else [0, 0, 4]
    return {
        "repetition_penalty": pick.choice([1.0, 1.0, 1.3, 0.8]),
        "no_repeat_ngram_size": pick.choice(sizes),
    }


def test_the_cases_cover_every_switch() -> None:
    """A generator that never sets a switch proves nothing about it."""
    assert len(ALL_CASES) >= 200
    for key in (
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "tie_word_embeddings",
    ):
        assert {case.config[key] for case in ALL_CASES} == {True, False}
    assert {case.config["activation_function"] for case in ALL_CASES} == set(ACTIVATIONS)
    assert {case.config["n_layer"] for case in ALL_CASES} == {1, 2, 3, 4}
    assert {case.config["n_inner"] is None for case in ALL_CASES} == {True, False}
    layouts = {(case.by_transformers, case.shards > 1, case.dtype) for case in ALL_CASES}
    assert len(layouts) == 2 * 2 * 3
    assert {(case.prefix, case.shards > 1) for case in ALL_CASES if not case.by_transformers} == {
        (prefix, sharded) for prefix in ("transformer.", "") for sharded in (True, False)
    }
    assert any(case.config["reorder_and_upcast_attn"] and case.attention == "eager" for case in ALL_CASES)


def test_full_forward(pair: Pair) -> None:
    ids = _ids(pair.pick, pair.ours.config.vocab_size, CONTEXT)
    theirs = pair.theirs.logits(ids, ids[::-1])
    ours = torch.stack(backend_logits(pair.ours.backend, ids, ids[::-1]))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_steps_equal_the_full_forward(pair: Pair) -> None:
    """A step that looks at the wrong keys, or at the wrong position, differs from the whole."""
    backend, ids = pair.ours.backend, _ids(pair.pick, pair.ours.config.vocab_size, CONTEXT)
    (theirs,) = pair.theirs.logits(ids)
    slot = backend.new_slot()
    edges = [0, 1, 2, 9, *range(10, CONTEXT + 1)]
    steps = [
        backend.forward(Batch.of([(slot, begin, ids[begin:end])], wanted=range(end - begin)))
        for begin, end in itertools.pairwise(edges)
    ]
    backend.free_slot(slot)
    torch.testing.assert_close(torch.from_numpy(np.concatenate(steps)), theirs, rtol=0, atol=TOLERANCE)


def test_greedy_draws_nothing(ending: Ending) -> None:
    """Greedy decoding is the same with either random numbers: it needs none."""
    default = GenerateOptions(temperature=0, max_new_tokens=20)
    one = ending.ours.generate([3, 1, 4], default)
    other = ending.ours.generate([3, 1, 4], replace(default, rng="transformers", seed=1))
    assert one.choices[0].token_ids == other.choices[0].token_ids


def test_greedy(pair: Pair) -> None:
    pick, vocab_size = pair.pick, pair.ours.config.vocab_size
    prompt, options = _ids(pick, vocab_size, pick.randint(1, 12)), _repetition_options(pick, vocab_size)
    eos = pair.case.config["eos_token_id"]
    rows = pair.theirs.generate(
        prompt, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=eos, **options
    )
    ours = pair.ours.generate(
        prompt, GenerateOptions(temperature=0, max_new_tokens=NEW_TOKENS, **options)
    ).choices[0]
    assert [ours.token_ids] == _continuations(rows, prompt, eos)
    assert ours.finish_reason == ("length" if len(ours.token_ids) == NEW_TOKENS else "eos")


@pytest.mark.parametrize("sequences", [1, 3])
def test_sampled(pair: Pair, sequences: int) -> None:
    pick, vocab_size = pair.pick, pair.ours.config.vocab_size
    prompt, options = _ids(pick, vocab_size, pick.randint(1, 12)), _sampling_options(pick, vocab_size)
    seed, eos = pick.randrange(2**32), pair.case.config["eos_token_id"]
    counts = {"max_new_tokens": NEW_TOKENS, "num_return_sequences": sequences}
    rows = pair.theirs.generate(prompt, seed=seed, do_sample=True, eos_token_id=eos, **counts, **options)
    ours = pair.ours.generate(prompt, GenerateOptions(rng="transformers", seed=seed, **counts, **options))
    assert [choice.token_ids for choice in ours.choices] == _continuations(rows, prompt, eos)


@dataclass(frozen=True, slots=True)
class Ending:
    """A model where a good part of what may be drawn ends the text."""

    ours: Engine
    theirs: GPT2LMHeadModel
    eos: list[int]


@pytest.fixture(scope="module", params=OWN_BACKENDS)
def ending(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ending:
    eos = list(range(0, 64, 9))
    directory = make_model(
        tmp_path_factory.mktemp("ending"), tokenizer=None, vocab_size=64, eos_token_id=eos, std=0.1
    )
    return Ending(load_on(request.param, directory), _load(directory), eos)


def _load(directory: Path, **options: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize("seed", range(12))
def test_sampled_rows_that_end_at_different_times(ending: Ending, seed: int) -> None:
    """A finished row keeps its place in transformers' draw; leaving it out shifts the others."""
    prompt = [3, 1, 4]
    transformers.set_seed(seed)
    rows = _generate(
        ending.theirs,
        prompt,
        do_sample=True,
        max_new_tokens=30,
        num_return_sequences=5,
        eos_token_id=ending.eos,
    )
    ours = ending.ours.generate(
        prompt, GenerateOptions(rng="transformers", seed=seed, max_new_tokens=30, num_return_sequences=5)
    )
    lengths = {len(choice.token_ids) for choice in ours.choices}
    assert len(lengths) >= 3
    assert [choice.token_ids for choice in ours.choices] == _continuations(rows, prompt, ending.eos)


def test_defaults_are_those_of_transformers(ending: Ending) -> None:
    """Neither side is told how to sample: top-k 50 and temperature 1."""
    draw = partial(_generate, ending.theirs, [7], do_sample=True, num_return_sequences=8)
    transformers.set_seed(11)
    rows = draw(max_new_tokens=20, eos_token_id=ending.eos)
    options = GenerateOptions(rng="transformers", seed=11, num_return_sequences=8, max_new_tokens=20)
    ours = ending.ours.generate([7], options)
    assert [choice.token_ids for choice in ours.choices] == _continuations(rows, [7], ending.eos)


def test_max_length_counts_as_in_transformers(ending: Ending) -> None:
    prompt = [5, 6, 7]
    rows = _generate(ending.theirs, prompt, do_sample=False, max_length=20, eos_token_id=63)
    ours = ending.ours.generate(prompt, GenerateOptions(temperature=0, max_length=20, ignore_eos=True))
    assert ours.choices[0].token_ids == rows[0, len(prompt) :].tolist()
    assert len(ours.choices[0].token_ids) == 17


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("tie", [True, False])
def test_a_head_of_its_own(tmp_path: Path, tie: bool, backend: str) -> None:
    """A checkpoint that carries a head which is not the embeddings, whatever its config says."""
    directory = make_model(tmp_path, tokenizer=None, tie_word_embeddings=False)
    config = GPT2Config.from_pretrained(directory)
    write_json(directory / "config.json", {**config.to_dict(), "tie_word_embeddings": tie})
    ids = [1, 2, 3, 4]
    with torch.inference_mode():
        theirs = _load(directory)(torch.tensor([ids])).logits[0]
    (ours,) = backend_logits(load_on(backend, directory).backend, ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
