"""Trained models of others on both backends, with the figures that were published or computed with them.

The expected values are numpy's in float64, onnxruntime's or PyTorch's own; where each comes from
stands in the data's README.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import OWN_BACKENDS, backend_logits, load_on, shared
from torch import Tensor

from gpt2cli.core.backend import Batch
from gpt2cli.core.engine import Engine
from gpt2cli.core.torch_gpt2 import Slots, TorchGPT2
from gpt2cli.core.torch_model import whole_texts
from gpt2cli.options import GenerateOptions


def _expected(model: str, file: str = "expected.json") -> Any:
    return json.loads(shared("models", model, file).read_text("utf-8"))


def _load(model: str, backend: str) -> Engine:
    engine: Engine = load_on(backend, shared("models", model, "hf"))
    return engine


def _batched_nll(engine: Engine, rows: Sequence[Sequence[int]]) -> Iterator[float]:
    """The negative log-likelihood of each row after its first token, rows of any length in one pass."""
    for row, logits in zip(rows, backend_logits(engine.backend, *(row[:-1] for row in rows)), strict=True):
        logprobs = logits.double().log_softmax(dim=-1)
        yield -float(logprobs[range(len(row) - 1), row[1:]].sum())


@pytest.fixture(scope="module", params=OWN_BACKENDS)
def slm(request: pytest.FixtureRequest) -> Engine:
    """slm_4096_kunal: exact gelu, tied head, context 128."""
    return _load("slm_4096_kunal", request.param)


@pytest.fixture(scope="module")
def slm_expected() -> Any:
    return _expected("slm_4096_kunal")


def test_slm_greedy_answers(slm: Engine, slm_expected: Any) -> None:
    """The answers are whole lines; those that reach the end of the context stop there."""
    answers = slm_expected["greedy_until_newline_sliding_window_128"]
    for prompt, text in answers.items():
        found = slm.generate(prompt, GenerateOptions(temperature=0, stop=("\n",)))
        room = slm.config.n_positions - len(prompt)
        whole = text.removeprefix(prompt).removesuffix("\n")
        assert found.text == whole[:room]
        assert found.choices[0].finish_reason == ("stop" if len(whole) < room else "context")


def test_slm_sliding_goes_on_past_the_context(slm: Engine, slm_expected: Any) -> None:
    answers = slm_expected["greedy_until_newline_sliding_window_128"]
    prompt, text = max(answers.items(), key=lambda pair: len(pair[1]))
    assert len(text) > slm.config.n_positions
    options = GenerateOptions(temperature=0, max_new_tokens=400, overflow="slide")
    found = slm.generate(prompt, options)
    assert (prompt + found.text)[:128] == text[:128]
    assert len(found.text) == 400 and found.choices[0].finish_reason == "length"
    assert all(char.isprintable() or char == "\n" for char in found.text)
    assert found.text.count("A:") >= 2 and found.stats.dropped_tokens > 128


def test_slm_sliding_ends_at_a_stop(slm: Engine) -> None:
    options = GenerateOptions(temperature=0, max_new_tokens=400, overflow="slide")
    prompt = "Q: How many parameters do you have?\nA:"
    whole = slm.generate(prompt, options).text
    at = 300
    stop = whole[at : at + 12]
    found = slm.generate(prompt, replace(options, stop=(stop,)))
    assert found.text == whole[: whole.index(stop)] and len(prompt + found.text) > 128
    assert found.choices[0].finish_reason == "stop"


def test_slm_last_logits(slm: Engine, slm_expected: Any) -> None:
    prompt = next(iter(slm_expected["greedy_until_newline_sliding_window_128"]))
    (logits,) = backend_logits(slm.backend, slm.encode(prompt))
    np.testing.assert_allclose(
        logits[-1].numpy(), slm_expected["first_prompt_last_logits"], rtol=0, atol=1e-4
    )


def test_slm_mean_nll(slm: Engine, slm_expected: Any) -> None:
    """Near enough to tell the exact gelu from its approximation (0.0707644 from 0.0707700)."""
    text = shared("models", "slm_4096_kunal", "source", "corpus.txt").read_text("utf-8")
    ids = slm.encode(text)
    windows = [ids[at : at + 129] for at in range(0, len(ids) - 1, 128)]
    assert sum(len(window) - 1 for window in windows) == slm_expected["n_targets"]
    mean = sum(_batched_nll(slm, windows)) / slm_expected["n_targets"]
    assert mean == pytest.approx(slm_expected["mean_nll_disjoint_windows_128"], abs=1e-6)
    assert math.exp(mean) == pytest.approx(slm_expected["ppl"], abs=1e-6)


@pytest.fixture(scope="module", params=OWN_BACKENDS)
def makemore(request: pytest.FixtureRequest) -> Engine:
    """makemore_names_lmj9: gelu_new, untied head, context 16; id 0 begins and ends a name."""
    return _load("makemore_names_lmj9", request.param)


@pytest.fixture(scope="module")
def makemore_expected() -> Any:
    return _expected("makemore_names_lmj9")


@pytest.mark.slow
def test_makemore_nll_of_all_names(makemore: Engine, makemore_expected: Any) -> None:
    """32,033 rows in batches of all lengths; roughly by length, since some are attended at once."""
    text = shared("models", "makemore_names_lmj9", "source", "names.txt").read_text("utf-8")
    names = sorted(text.split(), key=lambda name: len(name) // 4)
    assert len(names) == makemore_expected["n_names"]
    rows = [[0, *makemore.encode(name), 0] for name in names]
    nll: dict[str, float] = {}
    for start in range(0, len(rows), 512):
        batch = slice(start, start + 512)
        nll.update(zip(names[batch], _batched_nll(makemore, rows[batch]), strict=True))
    total = sum(nll[name] for name in names)
    assert sum(len(row) - 1 for row in rows) == makemore_expected["n_target_tokens"]
    mean = total / makemore_expected["n_target_tokens"]
    assert mean == pytest.approx(makemore_expected["mean_nll_per_token_over_all_names"], abs=1e-6)
    for name, value in makemore_expected["per_name_nll"].items():
        assert nll[name] == pytest.approx(value, abs=1e-4)


def test_makemore_greedy_completions(makemore: Engine, makemore_expected: Any) -> None:
    """An empty prompt begins with the model's bos, which is the id that its names begin with."""
    for start, name in makemore_expected["greedy_completion"].items():
        prompt = [0, *(makemore.encode(start) if start else [])]
        found = makemore.generate(prompt, GenerateOptions(temperature=0))
        assert start + found.text == name
        assert found.choices[0].finish_reason == "eos"
    assert (
        makemore.generate("", GenerateOptions(temperature=0)).text
        == makemore_expected["greedy_completion"][""]
    )


def test_makemore_first_token_logits(makemore: Engine, makemore_expected: Any) -> None:
    (logits,) = backend_logits(makemore.backend, [0])
    np.testing.assert_allclose(logits[0].numpy(), makemore_expected["first_token_logits"], rtol=0, atol=1e-5)


STAGES = (
    ("x", "embeddings"),
    ("ln1", "h.0.ln_1"),
    ("qkv", "h.0.attn.c_attn"),
    ("attSm", "h.0.attn.weights"),
    ("y", "h.0.attn.context"),
    ("yProj", "h.0.attn.c_proj"),
    ("attnResid", "h.0.attn.residual"),
    ("ln2", "h.0.ln_2"),
    ("fc", "h.0.mlp.c_fc"),
    ("gelu", "h.0.mlp.act"),
    ("mlp", "h.0.mlp.c_proj"),
    ("mlpResid", "h.0.output"),
    ("block0", "h.0.output"),
    ("block1", "h.1.output"),
    ("block2", "h.2.output"),
    ("ln_f", "ln_f"),
)


@pytest.fixture(scope="module", params=OWN_BACKENDS)
def sorter(request: pytest.FixtureRequest) -> Engine:
    """llmviz_gpt_nano_sort: six digits, then the same sorted; with PyTorch's activations of every stage."""
    return _load("llmviz_gpt_nano_sort", request.param)


@pytest.fixture(scope="module")
def truth() -> dict[str, Tensor]:
    path = shared("models", "llmviz_gpt_nano_sort", "pytorch_reference_activations.npz")
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def _stages(model: TorchGPT2, batch: Batch, slots: Slots | None = None) -> dict[str, Tensor]:
    """Each stage of the computation; of attention weights those of all texts, one after the other."""
    seen: dict[str, list[Tensor]] = {}

    def observe(stage: str, tensor: Tensor) -> None:
        seen.setdefault(stage, []).append(tensor)

    model.hidden_states(batch, slots, observe=observe, attention=range(model.config.n_layer))
    return {stage: torch.cat(tensors) for stage, tensors in seen.items()}


def test_sorter_every_stage(sorter: Engine, truth: dict[str, Tensor]) -> None:
    model, ids = sorter.model, truth["idx"].long()
    seen = _stages(model, whole_texts(ids.tolist()))
    logits = model.logits(seen["ln_f"]).view_as(truth["lm_head"])
    for theirs, ours in STAGES:
        torch.testing.assert_close(
            seen[ours].view_as(truth[theirs]),
            truth[theirs],
            rtol=0,
            atol=1e-5,
            msg=lambda m, at=ours: f"{at}: {m}",
        )
    q, k, v = seen["h.0.attn.c_attn"].view(*ids.shape, 3, 3, 16).permute(2, 0, 3, 1, 4)
    for name, found in (("q", q), ("k", k), ("v", v), ("lm_head", logits)):
        torch.testing.assert_close(found, truth[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.softmax(dim=-1), truth["probs"], rtol=0, atol=1e-5)


def test_sorter_stages_of_cached_steps(sorter: Engine, truth: dict[str, Tensor]) -> None:
    """The attention weights of later tokens are rows of the whole, whatever stands beside them."""
    model, ids = sorter.model, truth["idx"].long().tolist()
    slots = model.new_slots()
    places = [slots.new() for _ in ids]
    for begin, end in ((0, 7), (7, 8), (8, 11)):
        batch = Batch.of([(slot, begin, row[begin:end]) for slot, row in zip(places, ids, strict=True)])
        found = _stages(model, batch, slots)["h.0.attn.weights"]
        expected = truth["attSm"][:, :, begin:end, :end]
        torch.testing.assert_close(found.view_as(expected), expected, rtol=0, atol=1e-5)


def test_sorter_expected_logits(sorter: Engine) -> None:
    expected = _expected("llmviz_gpt_nano_sort")
    logits = torch.stack(backend_logits(sorter.backend, *expected["idx"]))
    torch.testing.assert_close(logits, torch.tensor(expected["logits_pytorch"]), rtol=0, atol=1e-5)


def test_sorter_sorts_every_sequence(sorter: Engine) -> None:
    """729 of 729, in batches of one step at a time."""
    backend, sorted_right = sorter.backend, 0
    inputs = list(itertools.product(range(3), repeat=6))
    for start in range(0, len(inputs), 81):
        digits = inputs[start : start + 81]
        slots = [backend.new_slot() for _ in digits]
        found: list[list[int]] = [[] for _ in digits]
        newest: Sequence[Sequence[int]] = digits
        for at in (0, *range(6, 11)):
            logits = backend.forward(Batch.of([(s, at, ids) for s, ids in zip(slots, newest, strict=True)]))
            newest = logits.argmax(axis=-1)[:, None].tolist()
            for row, new in zip(found, newest, strict=True):
                row += new
        for slot in slots:
            backend.free_slot(slot)
        sorted_right += sum(f == sorted(b) for f, b in zip(found, digits, strict=True))
    assert sorted_right == 729


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize(
    ("weights", "section"),
    [("model.safetensors", "safetensors"), ("onnx_weights_as_hf.safetensors", "onnx")],
)
def test_saved_by_transformers(tmp_path: Path, weights: str, section: str, backend: str) -> None:
    """capp_gpt: two trainings of one architecture, context 512, no text; bos outside the vocabulary."""
    source, document = shared("models", "capp_gpt"), _expected("capp_gpt", "expected_logits.json")
    for file, name in (
        ("config.json", "config.json"),
        ("generation_config.json", "generation_config.json"),
        (weights, "model.safetensors"),
    ):
        (tmp_path / name).write_bytes((source / file).read_bytes())
    engine = load_on(backend, tmp_path)
    logits = torch.stack([logits[-1] for logits in backend_logits(engine.backend, *document["input_ids"])])
    expected = _starting_with(document[section], "logits_last_position")
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-4)
    assert engine.tokenizer is None and engine.config.bos_token_id is None
    *greedy, eos = _starting_with(document[section], "greedy_ids_from_row0")
    found = engine.generate(document["input_ids"][0], GenerateOptions(temperature=0)).choices[0]
    assert found.token_ids == greedy and engine.config.eos_token_ids == (eos,)


def _starting_with(table: dict[str, Any], start: str) -> Any:
    return next(value for key, value in table.items() if key.startswith(start))
