"""LoRA adapters: what is computed with them is what peft computes, and what cannot be is refused."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import CONFIG, MODULES, WEIGHTS, adapter_tensors, edit_config, make_adapter, module_shapes
from cli import Outcome, call
from damage import VALUES
from support import (
    OWN_BACKENDS,
    backend_logits,
    make_model,
    native_available,
    series,
    tensors_of,
    write_json,
)

from gpt2cli.adapter import Target, fingerprint, open_adapter
from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.adapters import merged
from gpt2cli.core.engine import Engine
from gpt2cli.core.tensors import open_tensors
from gpt2cli.errors import ModelFileError, ModelNotFound, UsageError
from gpt2cli.hub.converted import converted_stem
from gpt2cli.hub.resolve import resolve, split_adapter, with_adapter
from gpt2cli.jobs.manifest import model_hash
from gpt2cli.options import LoadOptions

IDS = [256, *range(3, 60, 2), 7, 7, 9]
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that tests only read."""
    return make_model(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A random adapter for it, that tests only read."""
    return make_adapter(base.parent / "voice", base)


def logits_of(directory: Path, adapter: Path | None = None, **load: Any) -> Any:
    """The logits [T, V] of `IDS`."""
    options = LoadOptions(**{"device": "cpu", "precision": "fp32", "threads": 1, **load})
    engine = Engine.load(directory, options, adapter=adapter)
    return backend_logits(engine.backend, IDS)[0]


# What is computed.


def with_update(
    base: Path, adapter: Path, target: Path, *, scaling: Callable[[str, int], float], dora: bool = False
) -> Path:
    """A copy of the model whose weights have the update added, in fp64, by the formula of the papers."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(base, target)
    whole, parts = tensors_of(base), adapter_tensors(adapter)
    for module in module_shapes(base):
        key = f"base_model.model.{module}"
        if f"{key}.lora_A.weight" not in parts:
            continue
        a, b = (parts[f"{key}.lora_{part}.weight"].double() for part in "AB")
        weight = whole[f"{module}.weight"].double().T + scaling(module, len(a)) * (b @ a)
        if dora:
            length = parts[f"{key}.lora_magnitude_vector"].double()
            weight = length[:, None] * weight / torch.linalg.norm(weight, dim=1, keepdim=True)
        whole[f"{module}.weight"] = weight.T.contiguous().float()
    for key, tensor in parts.items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".lora_" not in key:
            whole[name] = tensor.float()
    save_file(whole, target / "model.safetensors", {"format": "pt"})
    return target


def biases(base: Path, kept: Callable[[str], bool]) -> dict[str, Any]:
    import torch

    return {
        name: torch.full_like(tensor, 0.25)
        for name, tensor in tensors_of(base).items()
        if name.endswith(".bias") and kept(name)
    }


CASES: dict[str, tuple[dict[str, Any], Callable[[str, int], float]]] = {
    "plain": ({}, lambda module, rank: 8 / rank),
    "one module": ({"targets": ("c_attn",), "rank": 1, "alpha": 0.5}, lambda module, rank: 0.5),
    "rslora": ({"use_rslora": True, "rank": 9}, lambda module, rank: 8 / math.sqrt(9)),
    "patterns": (
        {
            "ranks": {"h.1.attn.c_attn": 7, "c_fc": 2},
            "rank_pattern": {"h.1.attn.c_attn": 7, "c_fc": 2},
            "alpha_pattern": {"^transformer.h.0.mlp.c_fc": 3, "c_fc": 1},
        },
        lambda module, rank: (3 if "h.0.mlp.c_fc" in module else 1 if "c_fc" in module else 8) / rank,
    ),
    "dora": ({"use_dora": True, "targets": ("c_attn", "c_fc")}, lambda module, rank: 8 / rank),
    "half": ({"dtype": "float16"}, lambda module, rank: 8 / rank),
    "bfloat16": ({"dtype": "bfloat16", "target_modules": "all-linear"}, lambda module, rank: 8 / rank),
}


@pytest.mark.parametrize("backend", OWN_BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_updated_weights(base: Path, tmp_path: Path, name: str, backend: str) -> None:
    if backend == "native" and not native_available():
        pytest.skip("the native library is not available")
    given, scaling = CASES[name]
    adapter = make_adapter(tmp_path / "a", base, **given)
    dora = bool(given.get("use_dora"))
    expected = logits_of(with_update(base, adapter, tmp_path / "m", scaling=scaling, dora=dora))
    found = logits_of(base, adapter, backend=backend)
    assert float((found - expected).abs().max()) < 1e-4
    assert float((found - logits_of(base)).abs().max()) > 0.1


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases(base: Path, tmp_path: Path, bias: str) -> None:
    """peft keeps those of a module with an update under ``base_layer``."""
    found = biases(base, lambda name: bias == "all" or name.endswith("c_attn.bias"))
    keys = {name.replace("c_attn.bias", "c_attn.base_layer.bias"): each for name, each in found.items()}
    adapter = make_adapter(tmp_path / "a", base, bias=bias, targets=("c_attn",), tensors=keys)
    expected = with_update(base, adapter, tmp_path / "m", scaling=lambda module, rank: 2.0)
    assert float((logits_of(base, adapter) - logits_of(expected)).abs().max()) < 1e-4


@pytest.mark.parametrize("saved", ["wte", "lm_head"])
def test_embeddings_and_head_that_were_saved_whole(base: Path, tmp_path: Path, saved: str) -> None:
    """The one leaves the other as it was, though the base ties them: so it is in peft."""
    import torch

    wte = tensors_of(base)["transformer.wte.weight"]
    own = torch.randn(wte.shape, generator=torch.Generator().manual_seed(5)) * 0.3
    key = {"wte": "transformer.wte.weight", "lm_head": "lm_head.weight"}[saved]
    adapter = make_adapter(
        tmp_path / "a", base, std=0.0, tensors={key: own}, modules_to_save=[saved], targets=("c_fc",)
    )
    shutil.copytree(base, tmp_path / "m")
    config = json.loads((base / "config.json").read_bytes())
    write_json(tmp_path / "m" / "config.json", {**config, "tie_word_embeddings": False})
    from safetensors.torch import save_file

    whole = {**tensors_of(base), "lm_head.weight": wte.clone(), key: own}
    save_file(whole, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    for backend in ("auto", "torch"):
        found = logits_of(base, adapter, backend=backend)
        assert torch.equal(found, logits_of(tmp_path / "m", backend=backend))


def test_updates_of_the_embeddings(base: Path, tmp_path: Path) -> None:
    """They have names of their own, [r, V] and [D, r]; the tied head stays."""
    import torch

    generator = torch.Generator().manual_seed(1)
    a, b = (0.2 * torch.randn(shape, generator=generator) for shape in ((3, 257), (32, 3)))
    parts = {"transformer.wte.lora_embedding_A": a, "transformer.wte.lora_embedding_B": b}
    adapter = make_adapter(
        tmp_path / "a", base, rank=3, alpha=6, targets=(), tensors=parts, target_modules=["wte"]
    )
    tensors = open_tensors(open_checkpoint(base, adapter=adapter))
    wte = tensors_of(base)["transformer.wte.weight"]
    assert np.allclose(tensors.read("wte.weight")[0], wte + 2 * (b @ a).T, atol=1e-5)
    assert tensors.head_name() == "lm_head.weight"
    assert np.array_equal(tensors.read("lm_head.weight")[0], wte)
    assert tensors.info("wte.weight") is None and tensors.dtype("wte.weight") == "F32"


def test_other_architectures_ask_tensor_by_tensor(tmp_path: Path) -> None:
    """`merged` is all that another backend needs: names as its checkpoint has them, and how a matrix lies."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 6), (5, 2)))
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, tmp_path / WEIGHTS)
    write_json(
        tmp_path / CONFIG, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    found = open_adapter(tmp_path).fitted(
        {name: Target((5, 6), "linear"), "model.norm.weight": Target((6,), None)}
    )
    weight = np.ones((5, 6), np.float32)
    assert np.allclose(merged(found, name, weight), 1 + 2 * (b @ a).numpy(), atol=1e-5)
    assert (weight == 1).all()
    assert merged(found, "model.norm.weight", weight) is weight


def test_the_sum_is_taken_in_one_order(base: Path, adapter: Path) -> None:
    """One product after another, each rounded by itself: the same bits whatever computes matrix products."""
    found = open_checkpoint(base, adapter=adapter).adapter
    assert found is not None
    name = "h.0.attn.c_attn.weight"
    parts = adapter_tensors(adapter)
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    a, b = (parts[key.format(part)].numpy() for part in "AB")
    weight = tensors_of(base)[f"transformer.{name}"].numpy()
    total = a[0][:, None] * b[:, 0]
    for n in range(1, len(a)):
        total = total + a[n][:, None] * b[:, n]
    assert np.array_equal(merged(found, name, weight), weight + total * np.float32(2))


# The same bits as the merged model.


@pytest.fixture(scope="module")
def exported(base: Path, adapter: Path) -> Path:
    """The model of both, written by ``export``."""
    target = base.parent / "merged"
    assert call("export", f"{base}+{adapter}", target).code == 0
    return target


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", OWN_BACKENDS)
def test_bits_are_those_of_the_merged_model(
    base: Path, adapter: Path, exported: Path, precision: str, backend: str
) -> None:
    import torch

    if backend == "native" and not native_available():
        pytest.skip("the native library is not available")
    given = {"precision": precision, "backend": backend}
    assert torch.equal(logits_of(base, adapter, **given), logits_of(exported, **given))


@pytest.mark.parametrize(
    "extra", [(), ("-n", "3"), ("--rng", "transformers"), ("--precision", "int8"), ("--draft", "lookup")]
)
def test_texts_are_those_of_the_merged_model(
    base: Path, adapter: Path, exported: Path, extra: tuple[str, ...]
) -> None:
    same = ("--seed", "7", "--max-new-tokens", "30", "--json", "--logprobs", "2", *extra, "to be or not")
    one = call("generate", "-m", base, "--adapter", adapter, *same).document
    other = call("generate", "-m", exported, *same).document
    assert one["choices"] == other["choices"]
    assert one["model"] == f"{base}+{adapter}"
    assert one["choices"] != call("generate", "-m", base, *same).document["choices"]


def test_other_commands_apply_it_too(base: Path, adapter: Path, exported: Path, tmp_path: Path) -> None:
    """batch, score, features, inspect, chat: what they print is what they print of the merged model."""
    lines = b"one\ntwo three\n"
    (tmp_path / "in.txt").write_bytes(lines)
    for arguments, stdin in (
        (("batch", "--seed", "3", "--max-new-tokens", "9", "--lines", tmp_path / "in.txt"), b""),
        (("score", "-f", tmp_path / "in.txt", "--lines"), b""),
        (("features", "--pool", "mean", "a text"), b""),
        (("inspect", "--csv", "a text"), b""),
        (("chat", "--seed", "3", "--max-new-tokens", "9"), lines),
    ):
        one = call(*arguments, "-q", "-m", base, "--adapter", adapter, stdin=stdin)
        other = call(*arguments, "-q", "-m", exported, stdin=stdin)
        plain = call(*arguments, "-q", "-m", base, stdin=stdin)
        assert one.code == other.code == 0, one.err + other.err
        assert _without_names(one.out) == _without_names(other.out) != _without_names(plain.out), arguments


def _without_names(text: str) -> list[str]:
    """The lines, without what differs from run to run."""
    return [
        re.sub(r'"(model|created|id|request_id)": ?("[^"]*"|\d+)', "", line) for line in text.splitlines()
    ]


def test_half_precision_bases_are_merged_in_fp32(tmp_path: Path) -> None:
    """The export is fp32 as a whole: nothing that the adapter says is rounded away."""
    import torch

    half = make_model(tmp_path / "half", dtype="bfloat16")
    adapter = make_adapter(tmp_path / "a", half)
    assert call("export", f"{half}+{adapter}", tmp_path / "m").code == 0
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "m").values()} == {torch.float32}
    for precision in ("fp32", "bf16", "int8"):
        given = {"precision": precision}
        assert torch.equal(logits_of(half, adapter, **given), logits_of(tmp_path / "m", **given))


@pytest.mark.slow
def test_transformers_loads_the_export(exported: Path, base: Path, adapter: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(exported).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    assert float((logits_of(base, adapter) - expected).abs().max()) < 1e-4


@pytest.mark.skipif(not native_available(), reason="the native library is not available")
def test_converted_weights_are_of_the_adapter(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached conversion is used again with the same adapter only; that of the base is another file."""
    import torch

    monkeypatch.setattr("gpt2cli.core.native.backend.WORTH_KEEPING", 0)
    own = tmp_path / "voice"
    shutil.copytree(adapter, own)
    model = resolve(f"{base}+{own}")
    stem = converted_stem(model)
    assert stem is not None and stem != converted_stem(resolve(str(base)))
    for number, precision in enumerate(("int8", "fp32"), 1):
        given = {"precision": precision, "converted": stem}
        first = logits_of(base, own, **given)
        kept = sorted(path.name for path in stem.parent.iterdir())
        assert len(kept) == 2 * number and all(name.startswith(stem.name) for name in kept)
        assert torch.equal(first, logits_of(base, own, precision=precision))
        with monkeypatch.context() as patch:
            # What is kept is not merged again.
            patch.setattr("gpt2cli.core.tensors.merged", None)
            assert torch.equal(first, logits_of(base, own, **given))
    make_adapter(own, base, seed=1)
    changed = converted_stem(model)
    assert changed is not None and changed != stem
    assert not torch.equal(first, logits_of(base, own, precision="fp32", converted=changed))


# With peft.


PEFT_CASES: dict[str, dict[str, Any]] = {
    "all": {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    "patterns": {
        "target_modules": ["c_attn"],
        "use_rslora": True,
        "rank_pattern": {"h.0.attn.c_attn": 5},
        "alpha_pattern": {"c_attn": 3},
    },
    "dora": {"target_modules": ["c_attn", "c_fc"], "use_dora": True},
    "lora_only": {"target_modules": ["c_attn"], "bias": "lora_only"},
    "biases": {"target_modules": ["c_attn"], "bias": "all"},
    "saved head": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head", "ln_f"]},
    "head": {"target_modules": ["c_attn", "lm_head"]},
    "embeddings": {"target_modules": ["wte", "wpe", "c_fc"]},
    "one layer": {"target_modules": ["c_attn"], "layers_to_transform": [1]},
    "expression": {"target_modules": r".*h\.1\.mlp\.c_(fc|proj)"},
    "all-linear": {"target_modules": "all-linear"},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEFT_CASES)
def test_peft_computes_the_same(base: Path, tmp_path: Path, name: str) -> None:
    """Of an adapter that peft has written, and read again."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import GPT2LMHeadModel

    config = peft.LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", **PEFT_CASES[name])
    model = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "a").eval()
    with torch.no_grad():
        expected = again(torch.tensor([IDS])).logits[0]
    for backend in ("auto", "torch"):
        found = logits_of(base, tmp_path / "a", backend=backend)
        assert float((found - expected).abs().max()) < 1e-4
    assert float((logits_of(base) - expected).abs().max()) > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_finetune_keeps(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch
    from transformers import GPT2LMHeadModel

    (tmp_path / "text.txt").write_text("\n".join(f"{n} dogs ran" for n in range(400)), "utf-8")
    flags = ("--lora", "--lora-rank", "3", "--keep-adapter", "--steps", "4", "--learning-rate", "1e-2")
    few = ("--batch-size", "4", "--warmup", "1", "--threads", "1", "--samples", "0", "--precision", "fp32")
    made = call("finetune", tmp_path / "text.txt", "-m", base, *flags, *few, "--output", tmp_path / "tuned")
    assert made.code == 0, made.err
    kept = tmp_path / "tuned" / "adapter"
    model = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), kept).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    assert float((logits_of(base, kept) - expected).abs().max()) < 1e-4
    assert float((logits_of(base) - expected).abs().max()) > 1e-3


# Names.


def test_a_model_with_an_adapter_is_named_so(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert split_adapter(f"{base}+{adapter}") == (str(base), str(adapter))
    assert split_adapter("gpt2+a+b") == ("gpt2", "a+b")
    for plain in (None, "gpt2", "+x", "gpt2+", "no such+thing"):
        assert split_adapter(plain) == (plain, None)
    odd = tmp_path / "a+b"
    shutil.copytree(base, odd)
    assert split_adapter(str(odd)) == (str(odd), None)
    assert split_adapter(f"{odd}+{adapter}") == (str(odd), str(adapter))
    monkeypatch.chdir(tmp_path)
    assert split_adapter(f"a+b+{adapter}") == ("a+b", str(adapter))
    assert resolve(f"a+b+{adapter}").label == "a+b+voice"
    found = resolve(f"{base}+{adapter}")
    assert (found.directory, found.adapter) == (base, adapter)
    assert (found.label, found.reference) == ("base+voice", f"{base.resolve()}+{adapter.resolve()}")
    assert resolve(found.reference).adapter == adapter.resolve()
    assert resolve(f"tiny+{adapter}").reference == f"tiny+{adapter.resolve()}"
    assert model_hash(base, adapter=adapter) != model_hash(base)
    with pytest.raises(UsageError, match="a second one"):
        with_adapter(found, str(adapter))


def test_where_there_is_none(base: Path, adapter: Path, tmp_path: Path) -> None:
    for given, code, said in (
        (("-m", base, "--adapter", tmp_path / "none"), 3, "no such adapter"),
        (("-m", base, "--adapter", base), 3, "not an adapter (it has no adapter_config.json)"),
        (("-m", adapter), 3, "an adapter, and no model"),
        (("-m", f"{base}+{adapter}", "--adapter", adapter), 2, "would be a second one"),
        (("-m", "http://127.0.0.1:1", "--adapter", adapter), 2, "--adapter is for a model on this machine"),
    ):
        outcome = call("generate", *given, "ab")
        assert outcome.code == code and said in outcome.err, outcome.err
        assert_one_line_error(outcome)


def test_a_base_of_another_name_is_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "renamed")
    arguments = ("--adapter", adapter, "--max-new-tokens", "1", "ab")
    assert "made for" not in call("generate", "-m", base, *arguments).err
    assert "voice: it was made for base" in call("generate", "-m", tmp_path / "renamed", *arguments).err
    assert "made for" not in call("generate", "-q", "-m", tmp_path / "renamed", *arguments).err


def test_compare_has_a_column_for_each(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", base, seed=9)
    done = call(
        *("compare", "-q", "--json", "-m", base, "--adapter", adapter, "--adapter", other),
        *("--seed", "1", "--max-new-tokens", "5", "ab"),
    )
    names = [str(base), f"{base}+{adapter}", f"{base}+{other}"]
    assert [model["model"] for model in done.document["models"]] == names
    named = call("compare", "-q", "--json", "-m", names[0], "-m", names[1], "--seed", "1", "ab")
    assert [model["model"] for model in named.document["models"]] == names[:2]


def test_a_chat_goes_on_with_its_adapter(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    flags = ("-q", "--max-new-tokens", "9", "--temperature", "0")
    assert call("chat", "-m", f"base+{adapter.name}", "--save", "mine", *flags, stdin=b"one\n").code == 0
    monkeypatch.chdir("/")
    shown = call("chat", "--resume", "mine", "--json", *flags, stdin=b"two\n")
    assert shown.code == 0, shown.err
    both = call("chat", "-m", f"{base}+{adapter}", "--json", *flags, stdin=b"one\ntwo\n")
    assert shown.events[-1]["answer"] == both.events[-1]["answer"]


def test_rows_of_another_adapter_are_not_gone_on_with(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    target = tmp_path / "out.jsonl"
    run = ("batch", "-q", "-m", base, "--seed", "1", "--max-new-tokens", "2", "--lines", tmp_path / "in.txt")
    assert call(*run, "--adapter", adapter, "-o", target).code == 0
    assert call(*run, "--adapter", adapter, "-o", target).code == 0
    outcome = call(*run, "-o", target)
    assert outcome.code == 2 and "begun with another model" in outcome.err


def test_a_training_does_not_begin_with_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words " * 50)
    outcome = call("finetune", tmp_path / "text.txt", "-m", f"{base}+{adapter}", "--output", tmp_path / "o")
    assert outcome.code == 2 and "a training begins with a model" in outcome.err


def test_bench_measures_plain_models(base: Path, adapter: Path) -> None:
    outcome = call("bench", "-m", f"{base}+{adapter}", "--rounds", "1")
    assert outcome.code == 2 and "without adapters" in outcome.err


@pytest.mark.skipif(not native_available(), reason="the native library is not available")
def test_neither_torch_nor_peft_is_loaded(base: Path, adapter: Path) -> None:
    from test_layering import NOT_FOR_TOKENS, modules_loaded_by

    loaded = modules_loaded_by(
        *("generate", "-q", "-m", f"{base}+{adapter}", "--precision", "int8", "--max-new-tokens", "1", "ab")
    )
    assert loaded.isdisjoint({*NOT_FOR_TOKENS, "torch", "peft", "safetensors"})


@pytest.mark.slow
def test_a_server_has_one_model_for_each(base: Path, adapter: Path, exported: Path, tmp_path: Path) -> None:
    from serving import serving

    other = make_adapter(tmp_path / "other", base, seed=9)
    with serving("-m", base, "--adapter", adapter, "--adapter", other) as server:
        names = [model["id"] for model in server.ask("GET", "/v1/models").document["data"]]
        assert names == ["base", "base+voice", "base+other"]
        texts = [server.complete("ab", model=name, seed=1, max_tokens=9).texts for name in names]
    assert len({*map(str, texts)}) == 3
    with serving("-m", exported) as server:
        assert server.complete("ab", seed=1, max_tokens=9).texts == texts[1]


def test_show(base: Path, adapter: Path, tmp_path: Path) -> None:
    shown = dict(line.split("\t", 1) for line in call("show", adapter).out.splitlines() if "\t" in line)
    assert shown["adapter"] == "LoRA of rank 4, alpha 8" and shown["made for"] == "base"
    assert shown["changes"] == ", ".join(MODULES)
    document = call("show", adapter, "--json").document
    assert document["parameters"] == sum(t.numel() for t in adapter_tensors(adapter).values())
    assert document["adapter"]["rank"] == 4 and document["problem"] is None
    damaged = tmp_path / "damaged"
    shutil.copytree(adapter, damaged)
    (damaged / WEIGHTS).write_bytes(b"")
    assert "damaged" in call("show", damaged).err


def test_an_adapter_in_the_store(base: Path, adapter: Path, tmp_path: Path) -> None:
    """import, list, show, use by name, verify, export, rm; it is no model."""
    done = call("import", adapter, "--name", "voice")
    assert done.code == 0 and "imported the adapter voice" in done.err, done.err
    (listed,) = (m for m in call("list", "--json").document["models"] if m["name"] == "voice")
    assert listed["problem"] is None and listed["parameters"] > 0 and listed["kind"] == "adapter"
    assert "fp32 adapter" in call("list").out
    assert dict(line.split("\t", 1) for line in call("show", "voice").out.splitlines())["made for"] == "base"
    assert "voice" not in call("completions", "--models").out
    same = ("--seed", "1", "--json", "--max-new-tokens", "5", "ab")
    one = call("generate", "-m", base, "--adapter", "voice", *same).document
    other = call("generate", "-m", f"{base}+{adapter}", *same).document
    assert one["model"] == f"{base}+voice" and one["choices"] == other["choices"]
    assert call("generate", "-m", f"{base}+voice@local", *same).document["choices"] == one["choices"]
    outcome = call("generate", "-m", "voice", *same)
    assert outcome.code == 3 and "an adapter, and no model" in outcome.err
    assert call("verify", "voice").code == 0
    assert call("export", "voice", tmp_path / "out").code == 0
    assert fingerprint(tmp_path / "out") == fingerprint(adapter)
    found = resolve(f"{base}+voice")
    assert (found.label, found.reference) == ("base+voice", f"{base.resolve()}+voice")
    stored = found.adapter
    assert stored is not None
    (stored / WEIGHTS).write_bytes(b"")
    outcome = call("generate", "-m", base, "--adapter", "voice", *same)
    assert outcome.code == 5 and "it has 0 bytes" in outcome.err
    assert call("verify", "voice").code == 5
    assert call("rm", "--yes", "voice").code == 0
    outcome = call("generate", "-m", base, "--adapter", "voice", *same)
    assert outcome.code == 3 and "no adapter of that name" in outcome.err
    damaged = tmp_path / "damaged"
    shutil.copytree(adapter, damaged)
    edit_config(damaged, r=3)
    assert call("import", damaged, "--name", "bad").code == 5


def test_an_adapter_in_the_hugging_face_cache(base: Path, adapter: Path) -> None:
    from stores import cache_model

    cache_model(adapter, "owner/voice")
    done = call("generate", "-m", f"{base}+owner/voice", "--seed", "1", "--max-new-tokens", "5", "ab")
    assert done.code == 0, done.err
    outcome = call("generate", "-m", base, "--adapter", "owner/other", "ab")
    assert outcome.code == 4 and "owner/other: not on this disk, and offline" in outcome.err


# What is refused.


def assert_one_line_error(outcome: Outcome) -> None:
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("note", "warning"))]
    assert "Traceback" not in outcome.err
    assert 1 <= len(lines) <= 2 and lines[0].startswith("error: "), outcome.err
    assert len(lines) == 1 or lines[1].startswith("hint: "), outcome.err
    assert outcome.out == ""


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "an adapter of type 'LOHA'"),
    ({"peft_type": None}, "an adapter of type None"),
    ({"task_type": "SEQ_CLS"}, "task_type"),
    ({"r": 0}, "r is 0"),
    ({"r": 2.0}, "r is 2.0"),
    ({"r": 5}, "asks for rank 5"),
    ({"r": 10**9}, "allowed: 1 to 8192"),
    ({"lora_alpha": "8"}, "lora_alpha"),
    ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    ({"lora_alpha": 10**400}, "lora_alpha"),
    ({"rank_pattern": {"c_fc": 3}}, "asks for rank 3"),
    ({"rank_pattern": {"(a+)+$": 3}}, "no regular expressions"),
    ({"rank_pattern": [1]}, "rank_pattern"),
    ({"alpha_pattern": {"c_fc": None}}, "alpha_pattern is None"),
    ({"use_rslora": 1}, "use_rslora is 1"),
    ({"use_dora": True}, "does not have the tensors that it needs"),
    ({"bias": "some"}, "bias is 'some'"),
    ({"bias": "all"}, "which was saved whole, is missing"),
    ({"modules_to_save": ["wte"]}, "'wte', which was saved whole, is missing"),
    ({"modules_to_save": "wte"}, "modules_to_save"),
    ({"target_modules": ["c_attn"]}, "its config does not name it"),
    ({"target_modules": ["c_attn", "c_proj", "c_fc", "wte"]}, "the update of wte.weight is missing"),
    ({"target_modules": 3}, "target_modules"),
    ({"init_lora_weights": "pissa"}, "which changes the base too"),
    ({"init_lora_weights": "pissa_niter_16"}, "which changes the base too"),
    ({"init_lora_weights": None}, "which changes the base too"),
    ({"trainable_token_indices": [1]}, "not supported"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"lora_bias": True}, "lora_bias"),
    ({"use_qalora": True}, "use_qalora"),
    ({"something_new": {"a": 1}}, "something_new is {'a': 1}, which is not supported"),
    ({"base_model_name_or_path": ["gpt2"]}, "base_model_name_or_path"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=lambda each: str(each)[:40])
def test_configs_that_are_refused(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    own = tmp_path / "a"
    shutil.copytree(adapter, own)
    edit_config(own, **changes)
    with pytest.raises(ModelFileError) as raised:
        open_checkpoint(base, adapter=own)
    assert said in str(raised.value), raised.value
    assert "\n" not in str(raised.value)


def test_what_only_a_training_needs_does_not_matter(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = tmp_path / "a"
    shutil.copytree(adapter, own)
    edit_config(
        own,
        lora_dropout=0.5,
        megatron_core="megatron.core",
        peft_version="9",
        revision="x",
        fan_in_fan_out=False,
        eva_config={"rho": 2},
        init_lora_weights="eva",
        loftq_config={},
        use_bdlora=None,
        ensure_weight_tying=False,
        layers_pattern="h",
        auto_mapping={"a": "b"},
    )
    assert open_checkpoint(base, adapter=own).adapter is not None
    assert fingerprint(own) != fingerprint(adapter)


def test_tensors_that_are_refused(base: Path, tmp_path: Path) -> None:
    import torch

    def refuse(said: str, tensors: dict[str, Any], **given: Any) -> None:
        own = make_adapter(tmp_path / "a", base, tensors=tensors, **given)
        with pytest.raises(ModelFileError, match=said):
            open_checkpoint(base, adapter=own)

    at = "transformer.h.0.attn.c_attn"
    new, table = "transformer.h.9.x", "transformer.wte"
    two = {f"{new}.lora_A.weight": torch.zeros(4, 32), f"{new}.lora_B.weight": torch.zeros(32, 4)}
    refuse("the model does not have it", two, target_modules="x")
    refuse("the config does not speak of it", {"transformer.ln_f.weight": torch.zeros(32)})
    refuse("the config does not speak of it", {f"{at}.base_layer.weight_scale": torch.zeros(32)})
    refuse("is of type I64", {"transformer.ln_f.weight": torch.zeros(32, dtype=torch.int64)})
    norm = {"transformer.ln_f.weight": torch.zeros(31)}
    refuse("has shape", norm, modules_to_save=["ln_f"])
    norm = {"transformer.ln_f.weight": torch.zeros(32)}
    refuse(r"ln_f\.bias, which was saved whole", norm, modules_to_save=["ln_f"])
    two = {f"{table}.lora_A.weight": torch.zeros(4, 257), f"{table}.lora_B.weight": torch.zeros(32, 4)}
    refuse("as another kind of tensor", two, target_modules="x")
    refuse("does not have the tensors", {f"{at}.lora_magnitude_vector": torch.zeros(96)})
    refuse("32 inputs and 95 outputs", {f"{at}.lora_B.weight": torch.zeros(95, 4)})
    refuse("33 inputs and 96 outputs", {f"{at}.lora_A.weight": torch.zeros(4, 33)})
    refuse("asks for rank 4", {f"{at}.lora_A.weight": torch.zeros(4)})


def test_numbers_that_are_refused(base: Path, tmp_path: Path) -> None:
    """NaN in the adapter is found, and named; so is what overflows when it is merged."""
    import torch

    key = "transformer.h.1.mlp.c_fc.lora_A.weight"
    for tensor, said in (
        (torch.full((4, 32), math.nan), "c_fc.lora_A.weight' contains NaN"),
        (torch.full((4, 32), 3e38), "a: h.1.mlp.c_fc.weight is too large with it"),
    ):
        own = make_adapter(tmp_path / "a", base, tensors={key: tensor}, alpha=1e5)
        outcome = call("generate", "-q", "-m", base, "--adapter", own, "--max-new-tokens", "1", "ab")
        assert outcome.code == 5 and said in outcome.err
        assert_one_line_error(outcome)


def test_a_pickle_is_not_read(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = tmp_path / "a"
    shutil.copytree(adapter, own)
    (own / WEIGHTS).rename(own / "adapter_model.bin")
    outcome = call("generate", "--allow-pickle", "-m", base, "--adapter", own, "ab")
    assert outcome.code == 5 and "a pickle, which can carry code; it is not read" in outcome.err
    assert_one_line_error(outcome)


def test_it_fits_the_model_that_it_was_made_for(adapter: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", n_embd=16)
    with pytest.raises(ModelFileError, match="is updated as a matrix of 32 inputs") as raised:
        open_checkpoint(other, adapter=adapter)
    assert raised.value.hint == "it was made for 'base'"
    shallow = make_model(tmp_path / "shallow", n_layer=1)
    with pytest.raises(ModelFileError, match="the model does not have it"):
        open_checkpoint(shallow, adapter=adapter)
    deep = make_model(tmp_path / "deep", n_layer=3)
    with pytest.raises(ModelFileError, match=r"the update of h\.2\.attn\.c_attn\.weight is missing"):
        open_checkpoint(deep, adapter=adapter)
    with pytest.raises(ModelNotFound):
        open_checkpoint(deep, adapter=tmp_path)


# Damage.


def _any_value(rng: random.Random, own: Path) -> None:
    content = json.loads((own / CONFIG).read_bytes())
    key = rng.choice([*content, "new_key"])
    edit_config(own, **{key: rng.choice(VALUES)})


def _no_key(rng: random.Random, own: Path) -> None:
    content = json.loads((own / CONFIG).read_bytes())
    del content[rng.choice(list(content))]
    write_json(own / CONFIG, content)


def _cut(rng: random.Random, own: Path) -> None:
    path = own / rng.choice([CONFIG, WEIGHTS])
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _flipped(rng: random.Random, own: Path) -> None:
    path = own / rng.choice([CONFIG, WEIGHTS])
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), 4000))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _another_file(rng: random.Random, own: Path) -> None:
    path = own / rng.choice([CONFIG, WEIGHTS])
    path.unlink()
    match rng.randrange(4):
        case 0:
            path.mkdir()
        case 1:
            path.write_bytes(rng.randbytes(rng.randrange(100)))
        case 2:
            path.symlink_to("nowhere")


def _header(rng: random.Random, own: Path) -> None:
    path = own / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = rng.choice([name for name in header if name != "__metadata__"])
    match rng.randrange(4):
        case 0:
            header[key][rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice([*VALUES, "F64", [4, 4]])
        case 1:
            header[rng.choice([key[1:], key + ".x", "a" * 5000, "base_model.model."])] = header.pop(key)
        case 2:
            del header[key]
        case 3:
            header[key] = rng.choice(VALUES)
    whole = json.dumps(header).encode()
    path.write_bytes(len(whole).to_bytes(8, "little") + whole + data[8 + length :])


DAMAGES = (_any_value, _no_key, _cut, _flipped, _another_file, _header)


def test_damaged_folders(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Whatever the folder holds: a text, or one line of what is wrong and the exit code of it."""
    refused = 0
    for seed in range(count := series(600, 60)):
        rng, own = random.Random(seed), tmp_path / f"a{seed}"
        shutil.copytree(adapter, own)
        for _ in range(rng.choice([1, 1, 2])):
            if (own / CONFIG).is_file() and (own / WEIGHTS).is_file():
                try:
                    rng.choice(DAMAGES)(rng, own)
                except (ValueError, KeyError, AttributeError):
                    # The first damage left nothing that the second could spoil.
                    continue
        outcome = call("generate", "-q", "-m", base, "--adapter", own, "--max-new-tokens", "1", "ab")
        if outcome.code:
            assert outcome.code in (3, 5), (seed, outcome)
            assert_one_line_error(outcome)
            refused += 1
    assert refused > count // 2
