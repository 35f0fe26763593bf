"""Converted weights in files: the same numbers, made once, never mistaken for those of another checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import make_model

from gpt2cli import paths
from gpt2cli.core import converted as converted_module
from gpt2cli.core import weights as weights_module
from gpt2cli.core.engine import Engine
from gpt2cli.core.quantise import Kind
from gpt2cli.hub.converted import converted_stem, unused_converted
from gpt2cli.hub.resolve import resolve
from gpt2cli.hub.store import StoredModel, weights_cache
from gpt2cli.hub.verify import file_hash, verify_files
from gpt2cli.options import LoadOptions

PRECISIONS: list[Kind] = ["fp16", "bf16", "int8", "int4"]
IDS = torch.tensor([[5, 6, 7, 8, 200]])


@pytest.fixture(autouse=True)
def _worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "WORTH_KEEPING", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", n_embd=64, std=0.1)


def _load(model: Path, precision: Kind, stem: Path | None) -> Engine:
    return Engine.load(model, LoadOptions(precision=precision, converted=stem))


def _logits(engine: Engine) -> torch.Tensor:
    return engine.model.forward(IDS, engine.model.new_cache(), all_positions=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_numbers(tmp_path: Path, precision: Kind, tied: bool) -> None:
    """Converted in memory, while the file is written, and from the file."""
    model = make_model(tmp_path / "model", n_embd=64, std=0.1, tie_word_embeddings=tied)
    stem = tmp_path / "cache" / "key"
    engines = [_load(model, precision, where) for where in (None, stem, stem)]
    (file,) = stem.parent.glob("*.safetensors")
    assert precision in file.name
    sidecar = file.with_name(f"{file.name}.sha256")
    assert sidecar.read_text().strip() == file_hash(file)
    expected = _logits(engines[0])
    for engine in engines[1:]:
        torch.testing.assert_close(_logits(engine), expected, rtol=0, atol=1e-5)
        engine.model.weights.pack()
        torch.testing.assert_close(_logits(engine), expected, rtol=0, atol=1e-5)
        assert engine.info == engines[0].info


def test_the_file_is_safetensors(model: Path, tmp_path: Path) -> None:
    _load(model, "int8", tmp_path / "key")
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    assert tensors["h.1.mlp.c_fc.weight"].dtype == torch.int8
    assert tensors["h.1.mlp.c_fc.weight"].shape == (256, 64)
    assert tensors["lm_head.weight.scales"].shape == (257,)


def test_the_checkpoint_is_not_converted_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _load(model, "fp16", tmp_path / "key")

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(weights_module, "to_matrix", never)
    _load(model, "fp16", tmp_path / "key")


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100])
def test_a_damaged_file_is_made_again(model: Path, tmp_path: Path, damage: bytes) -> None:
    expected = _logits(_load(model, "fp16", tmp_path / "key"))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage)
    torch.testing.assert_close(_logits(_load(model, "fp16", tmp_path / "key")), expected, rtol=0, atol=1e-6)
    assert file.stat().st_size > 1000


def test_a_file_of_another_shape_is_made_again(tmp_path: Path) -> None:
    """The key says that it is the same model; the table says otherwise."""
    _load(make_model(tmp_path / "a", n_embd=64), "fp16", tmp_path / "key")
    other = make_model(tmp_path / "b", n_embd=32)
    expected = _logits(_load(other, "fp16", None))
    torch.testing.assert_close(_logits(_load(other, "fp16", tmp_path / "key")), expected, rtol=0, atol=1e-6)


def test_what_cannot_be_written_is_no_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expected = _logits(_load(model, "fp16", None))
    found = _logits(_load(model, "fp16", tmp_path / "file" / "key"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted_module, "_SPARE_BYTES", 2**62)
    _load(model, "fp16", tmp_path / "cache" / "key")
    assert not [*(tmp_path / "cache").iterdir()]


class TestKeys:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("GPT2CLI_HOME", str(tmp_path / "home"))
        yield

    def test_it_changes_with_the_weights(self, model: Path) -> None:
        before = converted_stem(resolve(str(model)))
        assert before == converted_stem(resolve(str(model)))
        os.utime(model / "model.safetensors", (1, 1))
        assert before != converted_stem(resolve(str(model)))

    def test_the_built_in_model_has_none(self) -> None:
        assert converted_stem(resolve(None)) is None

    def test_unused(self, model: Path) -> None:
        stem = converted_stem(resolve(str(model)))
        assert stem is not None and stem.is_relative_to(paths.cache_dir())
        _load(model, "fp16", stem)
        assert [*unused_converted()] == []
        assert len([*unused_converted(everything=True)]) == 2
        for path in stem.parent.iterdir():
            os.utime(path, (1, 1))
        assert len([*unused_converted()]) == 2
        _load(model, "fp16", stem)
        assert [*unused_converted()] == []

    def test_verify(self, model: Path) -> None:
        """A flipped bit is found, and what it is in goes; the model itself is as it was."""
        stored = StoredModel("owner/name", "0" * 40, model, "directory")
        _load(model, "fp16", weights_cache(stored) / "key")
        (file,) = weights_cache(stored).glob("*.safetensors")
        assert {c.status for c in verify_files(stored).files if "converted" in c.path} == {"verified"}
        data = bytearray(file.read_bytes())
        data[-5] ^= 4
        file.write_bytes(data)
        report = verify_files(stored)
        assert "deleted" in report.problems[0] and report.repair is None
        assert report.status == "unverified", "as a directory without a manifest is"
        assert not file.exists()
