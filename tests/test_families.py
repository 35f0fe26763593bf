"""Folders of other architectures: the good run in every command, the damaged are refused in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
from cli import call
from family_models import CONFIGS, CONTEXT, FAST, change_config, write_base, write_family
from serving import serving
from support import series, some_slow
from test_layering import modules_loaded_by

from gpt2cli.checkpoint import ModelConfig, open_checkpoint, parse_config
from gpt2cli.core.engine import Engine
from gpt2cli.errors import ModelFileError, UsageError
from gpt2cli.families import NAMES, UNLIMITED_CONTEXT, is_causal_model, parse_family, transformers_config
from gpt2cli.hub.inventory import describe
from gpt2cli.hub.store import StoredModel
from gpt2cli.options import LoadOptions, Precision
from gpt2cli.serve.embeddings import embed
from gpt2cli.serve.prefixes import Held
from gpt2cli.serve.worker import Lane

PATH = Path("config.json")
LLAMA = {"model_type": "llama", "vocab_size": 100, **CONFIGS["llama"]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    write_family(directory, "llama")
    return directory


# Configurations


def test_every_family_has_a_model_in_the_tests() -> None:
    assert {*CONFIGS} == {*NAMES}


def test_the_fields_of_a_family() -> None:
    config = parse_family({**LLAMA, "bos_token_id": 1, "eos_token_id": [2, 99, 100]}, PATH)
    shape = (config.n_layer, config.n_embd, config.n_head, config.n_kv_head, config.kv_head_dim)
    assert (*shape, config.n_positions, config.vocab_size) == (2, 32, 4, 2, 8, CONTEXT, 100)
    assert (config.architecture, config.bos_token_id, config.eos_token_ids) == ("llama", 1, (2, 99))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        # As they are published: the names differ, and some are of older days.
        ("bloom", {"n_embed": 64, "n_layer": 3, "num_attention_heads": 4, "seq_length": 2048}),
        ("gpt_neo", {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 2048}),
        ("gptj", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2048}),
        ("mamba", {"hidden_size": 64, "num_hidden_layers": 3, "n_layer": 3}),
    ],
)
def test_names_of_fields(kind: str, fields: dict[str, Any]) -> None:
    config = parse_family({"model_type": kind, "vocab_size": 9, **fields}, PATH)
    assert (config.n_embd, config.n_layer, config.n_positions) == (64, 3, 2048)
    assert config.n_head == (0 if kind == "mamba" else 4)


def test_a_context_without_limit() -> None:
    assert parse_family({"model_type": "bloom", "vocab_size": 9, **CONFIGS["bloom"]}, PATH).n_positions == 96
    fields = {key: value for key, value in CONFIGS["bloom"].items() if key != "seq_length"}
    assert (
        parse_family({"model_type": "bloom", "vocab_size": 9, **fields}, PATH).n_positions
        == UNLIMITED_CONTEXT
    )


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("vocab_size", 0, "vocab_size is 0; allowed: 1 to 1048576"),
        ("vocab_size", 2**20 + 1, "allowed"),
        ("vocab_size", 9.0, "allowed"),
        ("vocab_size", True, "allowed"),
        ("hidden_size", "32", "hidden_size is '32'; allowed"),
        ("hidden_size", None, "it has no hidden_size"),
        ("num_hidden_layers", 513, "allowed: 1 to 512"),
        ("num_attention_heads", -1, "allowed"),
        ("num_key_value_heads", 0, "allowed"),
        ("max_position_embeddings", 2**24 + 1, "allowed"),
        ("max_position_embeddings", None, "no max_position_embeddings"),
        ("head_dim", math.nan, "allowed"),
        ("eos_token_id", "2", "allowed: a token id"),
        ("quantization_config", {"quant_method": "gptq"}, "quantised"),
        ("is_encoder_decoder", True, "encoder"),
        ("num_experts", 10**9, "num_experts is 1000000000"),
        ("attention_types", [[["global"], 10**9]], "counts to 1000000000"),
        ("model_type", "t5", "no causal language model of transformers"),
        ("model_type", "../llama", "no causal language model"),
        ("model_type", 5, "no causal language model"),
        ("model_type", "x" * 10_000, "no causal language model"),
    ],
)
def test_fields_outside_the_limits(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ModelFileError, match=complaint) as caught:
        parse_family({**LLAMA, field: value}, PATH)
    assert len(str(caught.value)) < 250 and str(caught.value).startswith("config.json: ")


def test_what_transformers_is_given() -> None:
    """Nothing that names code, a kernel, an implementation or a file."""
    asking = {
        "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
        "_attn_implementation": "somebody/kernels",
        "attn_implementation": "somebody/kernels",
        "experts_implementation": "somebody/kernels",
        "_name_or_path": "x",
        "fusion_config": {"a": True},
        "transformers_weights": "other.bin",
        "torch_dtype": "float64",
        "use_cache": False,
    }
    assert transformers_config({**LLAMA, **asking}) == LLAMA


def test_which_of_a_cache_are_models() -> None:
    """A Hugging Face cache has all sorts of models; an encoder is none, though there is a class for it."""
    assert is_causal_model({"model_type": "opt"})
    assert is_causal_model({"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    assert not is_causal_model({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    assert not is_causal_model({"model_type": "none", "architectures": ["NoneForCausalLM"]})
    for fields in ({}, {"model_type": 5}, {"model_type": "bert", "architectures": [3]}, {"model_type": "t5"}):
        assert not is_causal_model(fields)


def test_gpt2_is_what_it_was() -> None:
    assert parse_config({"model_type": "gpt2"}, PATH) == ModelConfig()
    assert ModelConfig().architecture == "gpt2"


# Folders


def refusal(directory: Path) -> str:
    from gpt2cli.core.engine import Engine

    with pytest.raises((ModelFileError, UsageError)) as caught:
        Engine.load(directory)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_tensors_are_those_of_the_config(llama: Path, tmp_path: Path) -> None:
    """A config that asks for more, for less, or for other shapes than there are."""
    import shutil

    for number, (changes, complaint) in enumerate(
        [
            ({"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' and 8 more missing"),
            ({"num_hidden_layers": 1}, "in the weights, which a llama does not have"),
            ({"intermediate_size": 49}, "the config asks for"),
            ({"vocab_size": 300}, "has shape"),
            ({"hidden_size": 10**5}, "allowed: 1 to 65536"),
            ({"intermediate_size": 10**15}, ""),
            ({"hidden_act": "nothing"}, "transformers cannot load it"),
            ({"model_type": "qwen3"}, "missing from the weights"),
            ({"rope_parameters": {"rope_type": "x", "rope_theta": 1.0}}, "transformers cannot load it"),
        ]
    ):
        directory = tmp_path / str(number)
        shutil.copytree(llama, directory)
        change_config(directory, **changes)
        assert complaint in refusal(directory)


def test_pickles_are_for_gpt2(llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(llama / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    torch.save(
        {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        tmp_path / "pytorch_model.bin",
    )
    assert "a pickle, which can carry code" in refusal(tmp_path)
    outcome = call("generate", "-m", tmp_path, "--allow-pickle", "x")
    assert outcome.code == 5 and "is read for GPT-2 only" in outcome.err
    from gpt2cli.core.convert import convert_pickles

    convert_pickles(tmp_path)
    assert {*load_file(tmp_path / "model.safetensors")} == {*tensors}


def test_buffers_of_old_checkpoints(tmp_path: Path) -> None:
    """Masks that are no weights, of any type, are left alone."""
    import torch
    from safetensors.torch import load_file, save_file

    write_family(tmp_path, "gpt_neox")
    tensors = load_file(tmp_path / "model.safetensors")
    mask = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
    old = {
        "attention.bias": mask,
        "attention.masked_bias": torch.tensor(-1e9),
        "attention.rotary_emb.inv_freq": mask,
    }
    save_file(
        {**tensors, **{f"gpt_neox.layers.1.{name}": buffer.clone() for name, buffer in old.items()}},
        tmp_path / "model.safetensors",
    )
    assert {*open_checkpoint(tmp_path).tensors} == {*tensors}
    assert damage.load_and_generate(tmp_path) == "works"


@pytest.fixture(scope="module", params=some_slow(CONFIGS, len(FAST)))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), request.param)


def test_damaged_folders(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `test_checkpoint.test_a_damaged_folder`: they work by luck, or are refused in one line."""
    assert damage.load_and_generate(base / "single") == "works"
    assert damage.load_and_generate(base / "sharded") == "works"
    for seed in range(series(2 * len(damage.DAMAGES), len(damage.DAMAGES) // 2)):
        kind = damage.damaged(base, tmp_path / str(seed) / "model", 2 * seed + 1)
        allowed = {"works", "3", "5"}
        allowed |= {"2"} if kind in ("text_files", "vocabulary_files", "tokenizer_fields") else set()
        started = time.perf_counter()
        assert damage.load_and_generate(tmp_path / str(seed) / "model") in allowed, (seed, kind)
        assert time.perf_counter() - started < 20
    assert capfd.readouterr().err == ""


# Commands


def test_what_is_told_of_a_model(llama: Path) -> None:
    told = describe(StoredModel("llama", "", llama, "directory"))
    tensors = open_checkpoint(llama).tensors.values()
    assert told.problem is None and told.parameters == sum(math.prod(info.shape) for info in tensors)
    shown = call("show", llama, "--json").document
    assert (shown["architecture"], shown["context"], shown["precision"]) == ("llama", CONTEXT, "fp32")
    assert "llama, 2 layers, 32 wide, 4 heads" in call("show", llama).out
    verified = call("verify", llama, "--json")
    assert json.loads(verified.out)["models"][0]["status"] == "unverified", verified.err


@pytest.mark.parametrize("kind", some_slow([*FAST, "gemma2", "openai-gpt"], 1))
def test_commands(kind: str, tmp_path: Path) -> None:
    """Everything above the backend works: what it prints is tested elsewhere."""
    model = tmp_path / kind
    write_family(model, kind)
    document = call(
        "generate", "-m", model, "--json", "--seed", "1", "--max-new-tokens", "3", "-n", "2", "hi"
    ).document
    assert document["engine"]["kernels"][0].startswith("transformers ")
    assert document["engine"]["cache"] == {"mamba": "recurrent", "openai-gpt": "none"}.get(
        kind, "keys-values"
    )
    chat = call("chat", "-m", model, "--max-new-tokens", "3", stdin=b"hello\nagain\n")
    assert chat.code == 0, chat.err
    for command in (
        ("score", "-m", model, "--json", "a text"),
        ("inspect", "-m", model, "--json", "a text"),
        ("inspect", "-m", model, "--json", "--explain", "a text"),
        ("compare", "-m", model, "-m", "tiny", "--max-new-tokens", "3", "--json", "a text"),
        ("features", "-m", model, "--layers", "all", "-o", tmp_path / "f.npz", "a text"),
    ):
        outcome = call(*command)
        assert outcome.code == 0, (command, outcome.err)


def test_a_terminal_is_told_of_the_wait(llama: Path) -> None:
    """The line is gone when there is something to read."""
    err = call("generate", "-m", llama, "--max-new-tokens", "2", "ab", tty="out err").err
    assert "loading " in err and err.index("loading ") < err.index("\r\x1b[K", err.index("loading "))
    assert "loading" not in call("generate", "-m", llama, "--max-new-tokens", "2", "ab").err


def test_batch(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "a longer text", "x")))
    outcome = call("batch", "-m", llama, "--max-new-tokens", "4", rows, "-o", tmp_path / "out.jsonl")
    assert outcome.code == 0, outcome.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", some_slow(["mamba", "openai-gpt"], 1))
def test_what_keeps_no_keys_and_values_runs_in_batch_and_serve(kind: str, tmp_path: Path) -> None:
    """Nothing of a prompt is there already: what is read again is not called cached."""
    model, rows = tmp_path / kind, tmp_path / "rows.jsonl"
    write_family(model, kind)
    prompt = "the same long beginning of a text, and more of it"
    rows.write_text(2 * (json.dumps({"prompt": prompt, "seed": 1}) + "\n"))
    outcome = call("batch", "-m", model, "--max-new-tokens", "4", rows, "-o", tmp_path / "out.jsonl")
    assert outcome.code == 0, outcome.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    engine = Engine.load(model)
    lane = Lane(engine, rows=2, memory=10**9)
    assert lane.budget >= 2 * CONTEXT
    ids = engine.encode(prompt)
    slot, present = lane.prefixes.begin("key", ids, ())
    lane.prefixes.keep(Held("key", slot, ids))
    assert present == 0 and lane.prefixes.begin("key", ids, ())[1] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_embeddings_in_every_precision(llama: Path, precision: Precision) -> None:
    engine = Engine.load(llama, LoadOptions(precision=precision))
    vector = embed(engine, engine.encode("a text"))
    assert vector.dtype == np.float32 and np.isfinite(vector).all()


@pytest.mark.parametrize("options", [("--precision", "int8"), ("--precision", "int4")])
def test_precisions_of_gpt2_only(llama: Path, options: tuple[str, ...]) -> None:
    outcome = call("generate", "-m", llama, *options, "x")
    assert outcome.code == 2 and "is for GPT-2 only" in outcome.err and len(outcome.err.splitlines()) == 2


def test_training_is_of_gpt2_only(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 500)
    for command, model in (("finetune", "-m"), ("distill", "--teacher")):
        outcome = call(command, text, model, llama, "-o", tmp_path / command, "--steps", "1")
        assert outcome.code == 2 and "GPT-2 only" in outcome.err, outcome.err


@pytest.mark.slow
def test_transformers_is_imported_to_run_these_models(llama: Path) -> None:
    """For GPT-2 neither it nor torch is, which `test_layering` shows."""
    assert "transformers" in modules_loaded_by("generate", "-m", llama, "--max-new-tokens", "2", "ab")


@pytest.mark.parametrize("command", ["show", "verify"])
def test_transformers_is_not_imported_to_look_at_them(command: str, llama: Path) -> None:
    code = (
        "import sys; from gpt2cli.cli.app import main; main(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, command, llama], capture_output=True, timeout=60)
    assert done.returncode == 0


@pytest.mark.slow
def test_serve(llama: Path) -> None:
    """Two requests at once, each of several texts, whose answers are those of the command."""
    with serving("-m", llama) as server:
        body = {"prompt": "ab", "max_tokens": 5, "seed": 3, "n": 3}
        answer = server.ask("POST", "/v1/completions", body).document
        same = ("-n", "3", "--seed", "3", "--max-new-tokens", "5")
        command = call("generate", "-m", llama, *same, "--json", "ab")
        assert [each["text"] for each in answer["choices"]] == [
            each["text"] for each in command.document["choices"]
        ]
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        assert server.ask("POST", "/v1/chat/completions", chat).status == 200
        (found,) = server.ask("POST", "/v1/embeddings", {"input": "ab"}).document["data"]
        assert len(found["embedding"]) == 32
