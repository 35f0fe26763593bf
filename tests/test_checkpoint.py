"""Model folders: the good are read, the damaged refused in one line, whatever is damaged."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import pytest
from support import make_model, random_weights, shared, some_slow, write_json, write_weights

from gpt2cli import safetensors_header
from gpt2cli.checkpoint import (
    ACTIVATIONS,
    Checkpoint,
    ModelConfig,
    expected_shapes,
    open_checkpoint,
    parse_config,
    read_config,
)
from gpt2cli.errors import InvalidOption, ModelFileError, ModelNotFound
from gpt2cli.safetensors_header import read_header
from gpt2cli.untrusted import read_json

PATH = Path("config.json")
SMALL = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11, "n_positions": 16, "n_inner": None}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good folders, to be copied and spoiled."""
    return damage.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a random model without a tokenizer."""

    def make(**config: Any) -> Path:
        return make_model(tmp_path / "small", tokenizer=None, **{**SMALL, **config})

    return make


def refusal(directory: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


# Damaged folders


@pytest.mark.parametrize("seed", some_slow(range(300), 60))
def test_a_damaged_folder(seed: int, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It works by luck, or is refused: no traceback, no panic, no code run, no long wait.

    A vocabulary that has lost letters is one of a character model: then it is the prompt that is wrong (2).
    """
    kind = damage.damaged(base, tmp_path / "model", seed)
    allowed = {"works", "3", "5"}
    allowed |= {"2"} if kind in ("text_files", "vocabulary_files", "tokenizer_fields") else set()
    started = time.perf_counter()
    assert damage.load_and_generate(tmp_path / "model") in allowed
    assert time.perf_counter() - started < 5
    assert capfd.readouterr().err == ""


def test_the_good_folders_work(base: Path) -> None:
    """Else the damaged ones would prove nothing."""
    assert damage.load_and_generate(base / "single") == "works"
    assert damage.load_and_generate(base / "sharded") == "works"


def test_every_kind_of_damage_is_tried() -> None:
    assert len(damage.DAMAGES) <= 300 / 10


@pytest.mark.slow
def test_all_in_one_process_take_no_memory(base: Path) -> None:
    """A size that a file claims must not be taken at its word."""
    command = [sys.executable, damage.__file__, str(base), "300"]
    # Its neighbours here, which PYTHONSAFEPATH hides from it.
    folders = [str(Path(damage.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environ)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert sum(report["outcomes"].values()) == 300 + len(damage.SWELLING)
    assert report["grown_mib"] < 1024
    assert report["longest_s"] < 5


@pytest.mark.parametrize("name", ["missing", "x" * 300, "x\0y", "file.txt", "config.json/x", "\udcff"])
def test_no_directory_at_all(name: str, tmp_path: Path) -> None:
    """pathlib raises for a name that is too long."""
    (tmp_path / "file.txt").touch()
    with pytest.raises(ModelNotFound, match="not a model directory") as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.exit_code == 3


# Limits of the configuration


@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        ("n_layer", 1, 64),
        ("vocab_size", 1, 300_000),
        ("n_positions", 1, 65_536),
        ("n_embd", 1, 8192),
        ("n_inner", 1, 65_536),
    ],
)
def test_limits(field: str, lowest: int, highest: int) -> None:
    def parse(value: Any) -> ModelConfig:
        return parse_config({"n_head": 1, field: value}, PATH)

    for value in (lowest, highest):
        assert getattr(parse(value), field) == value
    for value in (lowest - 1, highest + 1, -highest, float(highest), True, str(highest), [highest], 10**4000):
        with pytest.raises(ModelFileError, match=field) as caught:
            parse(value)
        assert len(str(caught.value)) < 200


def test_heads_divide_the_width() -> None:
    assert parse_config({"n_embd": 12, "n_head": 12}, PATH).head_dim == 1
    for heads in (5, 24, 0, -1):
        with pytest.raises(ModelFileError, match="n_head"):
            parse_config({"n_embd": 12, "n_head": heads}, PATH)


def test_the_inner_width_is_four_times_the_width_unless_given() -> None:
    assert parse_config({"n_embd": 12}, PATH).n_inner == 48
    assert parse_config({"n_embd": 12, "n_inner": None}, PATH).n_inner == 48
    assert parse_config({"n_embd": 12, "n_inner": 5}, PATH).n_inner == 5


def test_epsilon() -> None:
    for value in (0, 0.0, 1e-5, math.nextafter(1.0, 0.0)):
        assert parse_config({"layer_norm_epsilon": value}, PATH).layer_norm_epsilon == value
    for value in (1, 1.0, -1e-9, math.nan, math.inf, "1e-5", None, False):
        with pytest.raises(ModelFileError, match="layer_norm_epsilon"):
            parse_config({"layer_norm_epsilon": value}, PATH)


def test_activations() -> None:
    aliases = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_python": "gelu"}
    for name in (*ACTIVATIONS, *aliases):
        found = parse_config({"activation_function": name}, PATH).activation_function
        assert found == aliases.get(name, name)
    for value in ("gelu_fast", "", None, 5, ["gelu"], {}):
        with pytest.raises(ModelFileError, match="activation_function"):
            parse_config({"activation_function": value}, PATH)


@pytest.mark.parametrize(
    "field",
    [
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "tie_word_embeddings",
    ],
)
def test_switches(field: str) -> None:
    assert getattr(parse_config({field: True}, PATH), field) is True
    assert getattr(parse_config({field: False}, PATH), field) is False
    for value in (0, 1, None, "true"):
        with pytest.raises(ModelFileError, match=field):
            parse_config({field: value}, PATH)


def test_cross_attention_is_refused() -> None:
    with pytest.raises(ModelFileError, match="cross-attention"):
        parse_config({"add_cross_attention": True}, PATH)


def test_nothing_given_is_gpt2() -> None:
    """Old configs lack most fields, model_type included; their defaults are the original model."""
    assert parse_config({}, PATH) == ModelConfig()
    assert ModelConfig().parameters == 124_439_808


def test_published_configs() -> None:
    config, generation = read_config_of(shared("configs", "gpt2-xl.config.json"))
    assert (config.n_layer, config.n_embd, config.eos_token_ids) == (48, 1600, (50256,))
    assert config.parameters == 1_557_611_200
    assert generation == {}
    config, _ = read_config_of(shared("configs", "DialoGPT-small.config.json"))
    assert config == ModelConfig(bos_token_id=50256, eos_token_ids=(50256,))


def read_config_of(path: Path) -> tuple[ModelConfig, Any]:
    return parse_config(json.loads(path.read_text()), path), {}


def test_special_ids(tmp_path: Path) -> None:
    """generation_config.json has the last word; an id outside the vocabulary counts as unset."""
    cases: list[tuple[dict[str, Any], dict[str, Any] | None, Any, tuple[int, ...]]] = [
        ({"bos_token_id": 3, "eos_token_id": 4}, None, 3, (4,)),
        ({"bos_token_id": None, "eos_token_id": None}, None, None, ()),
        ({"bos_token_id": 11, "eos_token_id": [1, 11, -1, 2]}, None, None, (1, 2)),
        ({"bos_token_id": 3, "eos_token_id": 4}, {"eos_token_id": [5, 6]}, 3, (5, 6)),
        ({"bos_token_id": 3, "eos_token_id": 4}, {"bos_token_id": 7, "eos_token_id": None}, 7, (4,)),
        ({"eos_token_id": 4}, {"eos_token_id": 50256}, None, ()),
    ]
    for config, generation, bos, eos in cases:
        write_json(tmp_path / "config.json", {**SMALL, **config})
        if generation is not None:
            write_json(tmp_path / "generation_config.json", generation)
        found, _ = read_config(tmp_path)
        assert (found.bos_token_id, found.eos_token_ids) == (bos, eos)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["5", 5.0, True, {}, [5, "6"], [[5]]])
def test_a_special_id_is_a_number(file: str, value: Any, tmp_path: Path) -> None:
    """The message names the file that has it: the other one may be right."""
    write_json(tmp_path / "config.json", SMALL)
    content = {**SMALL, "eos_token_id": value} if file == "config.json" else {"eos_token_id": value}
    write_json(tmp_path / file, content)
    with pytest.raises(ModelFileError, match=f"/{file}: eos_token_id"):
        read_config(tmp_path)


def test_code_in_a_config_is_ignored(small: Callable[..., Path]) -> None:
    """transformers would ask on standard input, and take a piped ``y`` for consent."""
    directory = small(
        auto_map={"AutoModelForCausalLM": "modeling.Model"}, attn_implementation="modeling.attention"
    )
    (directory / "modeling.py").write_text("open('ran', 'w')")
    assert open_checkpoint(directory).config == open_checkpoint(small()).config
    assert not Path("ran").exists()


# Sizes of files


def test_a_config_of_one_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = json.dumps(SMALL).encode()
    path.write_bytes(content.ljust(2**20))
    assert read_config(tmp_path)[0].n_embd == 8
    path.write_bytes(content.ljust(2**20 + 1))
    with pytest.raises(ModelFileError, match="larger than 1048576 bytes"):
        read_config(tmp_path)


def test_the_largest_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", 1000)
    path = tmp_path / "model.safetensors"
    for length, fits in ((1000, True), (1001, False)):
        path.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
        if fits:
            assert read_header(path) == {}
        else:
            with pytest.raises(ModelFileError, match="header does not fit"):
                read_header(path)


def test_a_header_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_header(path) == {}
    for length in (3, 2**32, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ModelFileError, match="header does not fit"):
            read_header(path)


def table_of(shape: list[Any], stop: int, dtype: str = "F32", key: str = "a") -> dict[str, Any]:
    return {key: {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (table_of([2], 8), 8, None),
        (table_of([2], 4, "BF16"), 4, None),
        (table_of([], 4), 4, None),
        (table_of([1] * 8, 4), 4, None),
        (table_of([1] * 9, 4), 4, "malformed"),
        (table_of([2**63], 4), 4, "malformed"),
        (table_of([-1], -4), 0, "malformed"),
        (table_of([True], 4), 4, "malformed"),
        (table_of([1.0], 4), 4, "malformed"),
        (table_of([2], 8), 7, "cut short"),
        (table_of([2], 8), 9, "cut short"),
        (table_of([2], 4), 4, "bytes"),
        (table_of([2**62], 4), 4, "bytes"),
        (table_of([1], 16, "C64"), 16, "C64"),
        ({**table_of([1], 4), **table_of([1], 4, key="b")}, 4, "overlap"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8, "overlap or leave gaps"),
        (table_of([2], 2, "BOOL", key="h.0.attn.bias"), 2, None),
        (table_of([2], 4, key="x\ny\x1b[2J" * 1000), 4, "bytes"),
    ],
)
def test_headers(header: Any, data: int, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    damage.write_table(path, header, bytes(data))
    if message is None:
        assert read_header(path).keys() == header.keys()
        return
    with pytest.raises(ModelFileError, match=message) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200 + len(str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b'{"a": 1, "a": 1}', b'[{"a": 1}]'])
def test_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="some"):
        read_json(path, 100)


# Tensors


def test_the_tensors_are_exactly_those_of_the_config(small: Callable[..., Path]) -> None:
    found = open_checkpoint(small(tie_word_embeddings=False))
    assert {name: info.shape for name, info in found.tensors.items()} == expected_shapes(found.config)
    assert found.config.parameters == sum(math.prod(info.shape) for info in found.tensors.values())


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("shards", [1, 3])
def test_names_with_and_without_a_prefix(prefix: str, shards: int, tmp_path: Path) -> None:
    found = open_checkpoint(make_model(tmp_path, tokenizer=None, prefix=prefix, shards=shards, **SMALL))
    assert found.tensors["wte.weight"].shape == (11, 8)
    assert found.tensors["wte.weight"].key == f"{prefix}wte.weight"


def spoil(directory: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the model's weights anew, after ``change``."""
    config = json.loads((directory / "config.json").read_text())
    tensors = random_weights(config)
    change(tensors)
    write_weights(directory, tensors)
    return directory


def test_what_is_missing_is_named(small: Callable[..., Path]) -> None:
    """transformers would fill it with random numbers, and go on."""

    def drop(tensors: dict[str, Any]) -> None:
        del tensors["transformer.h.0.ln_1.bias"], tensors["transformer.wpe.weight"]

    assert "'h.0.ln_1.bias' and 1 more missing" in refusal(spoil(small(), drop))


def test_an_untied_head_is_missing(small: Callable[..., Path]) -> None:
    directory = small()
    write_json(directory / "config.json", {**SMALL, "tie_word_embeddings": False})
    assert "'lm_head.weight' missing" in refusal(directory)


def test_what_does_not_belong_is_named(small: Callable[..., Path]) -> None:
    import torch

    found = refusal(spoil(small(), lambda tensors: tensors.update({"h.1.ln_1.bias": torch.zeros(8)})))
    assert "'h.1.ln_1.bias' in the weights, which GPT-2 does not have" in found


def test_a_wrong_shape_is_named(small: Callable[..., Path]) -> None:
    def turn(tensors: dict[str, Any]) -> None:
        key = "transformer.h.0.mlp.c_fc.weight"
        tensors[key] = tensors[key].T.contiguous()

    found = refusal(spoil(small(), turn))
    assert "h.0.mlp.c_fc.weight has shape [32, 8], the config asks for [8, 32]" in found


def test_the_buffers_of_old_checkpoints_are_left_out(small: Callable[..., Path]) -> None:
    import torch

    def add(tensors: dict[str, Any]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    found = open_checkpoint(spoil(small(), add))
    assert found.tensors.keys() == expected_shapes(found.config).keys()


def test_weights_of_another_type(small: Callable[..., Path]) -> None:
    def double(tensors: dict[str, Any]) -> None:
        tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].double()

    found = refusal(spoil(small(), double))
    assert "is of type F64; known: F32, F16, BF16" in found


def test_a_name_twice(small: Callable[..., Path]) -> None:
    """With and without its prefix it is the same tensor: which of the two would be anyone's guess."""
    import torch

    found = refusal(spoil(small(), lambda tensors: tensors.update({"ln_f.bias": torch.zeros(8)})))
    assert "'ln_f.bias' comes twice" in found


def test_links_as_a_hugging_face_cache_has_them(tmp_path: Path) -> None:
    """There every file is a link into blobs/; elsewhere a linked shard could be any file of the user's."""
    blobs = make_model(tmp_path / "blobs", tokenizer=None, shards=2, **SMALL)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in blobs.iterdir():
        (linked / path.name).symlink_to(path)
    assert open_checkpoint(linked).tensors.keys() == open_checkpoint(blobs).tensors.keys()
    index = linked / "model.safetensors.index.json"
    content = index.read_bytes()
    index.unlink()
    index.write_bytes(content)
    assert "refuses the file name" in refusal(linked)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a..b", "x" * 256, "a\0", "é"]
)
def test_a_shard_is_a_file_beside_the_index(name: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", tokenizer=None, shards=2, **SMALL)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["transformer.wte.weight"] = name
    write_json(index, content)
    assert "refuses the file name" in refusal(directory)


@pytest.mark.parametrize("found", [{}, [], 5, {"wte.weight": 5}])
def test_an_index_that_names_nothing(found: object, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", SMALL)
    write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": found})
    with pytest.raises(ModelFileError, match="has no weight_map"):
        open_checkpoint(tmp_path, allow_pickle=True)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """Which of the two is meant would depend on the order of the files."""
    import torch
    from safetensors.torch import load_file, save_file

    directory = make_model(tmp_path, tokenizer=None, shards=2, **SMALL)
    for path in directory.glob("model-*"):
        save_file({**load_file(path), "transformer.ln_f.bias": torch.zeros(8)}, path)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["transformer.ln_f.bias"]
    write_json(index, content)
    assert "does not agree with" in refusal(directory)


def test_a_directory_of_nothing_but_a_config(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", SMALL)
    assert "it has no model.safetensors" in refusal(tmp_path)


def test_a_pickle_needs_consent(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", SMALL)
    (tmp_path / "pytorch_model.bin").touch()
    assert "can carry code" in refusal(tmp_path)
    found = open_checkpoint(tmp_path, allow_pickle=True)
    assert (found.pickles, found.tensors) == ((tmp_path / "pytorch_model.bin",), {})


def test_safetensors_come_before_a_pickle(small: Callable[..., Path]) -> None:
    directory = small()
    (directory / "pytorch_model.bin").touch()
    assert open_checkpoint(directory, allow_pickle=True).pickles == ()


def test_a_fifo_does_not_block(small: Callable[..., Path]) -> None:
    directory = small()
    for name in ("model.safetensors", "generation_config.json", "config.json"):
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        assert f"{name}: not a regular file" in refusal(directory)
        (directory / name).unlink()
        small()


# The model's own sampling defaults


def of(generation: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("m"), ModelConfig(), generation)


def test_given_over_the_models_own_over_ours() -> None:
    options = of({"temperature": 0.7, "top_k": 5, "top_p": None}).generate_options({"top_k": 9})
    assert (options.temperature, options.top_k, options.top_p) == (0.7, 9, 1.0)


def test_what_else_a_generation_config_holds_is_ignored() -> None:
    generation = {
        "do_sample": True,
        "max_length": 50,
        "num_beams": 4,
        "seed": 3,
        "stop": "x",
        "device": "tpu",
    }
    options = of(generation).generate_options({})
    assert (options.max_length, options.seed, options.stop) == (None, None, ())


def test_a_given_length_replaces_the_models_other_length() -> None:
    own = of({"max_new_tokens": 5})
    assert own.generate_options({}).max_new_tokens == 5
    assert own.generate_options({"max_length": 9}).max_new_tokens is None


@pytest.mark.parametrize(
    "generation", [{"temperature": "hot"}, {"top_p": 2}, {"top_k": [1]}, {"min_p": True}]
)
def test_a_bad_default_is_the_files_fault(generation: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="generation_config"):
        of(generation).generate_options({})
    with pytest.raises(InvalidOption):
        of({}).generate_options(generation)


def test_attention_scale() -> None:
    config = ModelConfig(n_embd=64, n_head=4)
    assert config.attention_scale(3) == 0.25
    inverse = ModelConfig(n_embd=64, n_head=4, scale_attn_by_inverse_layer_idx=True)
    assert inverse.attention_scale(3) == 0.0625
    assert ModelConfig(scale_attn_weights=False).attention_scale(3) == 1.0
