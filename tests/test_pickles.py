"""Checkpoints that are pickles: the same numbers, no code, and one kind of error whatever is broken."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import load_torch, make_model, write_json
from torch import Tensor

from gpt2cli.checkpoint import expected_shapes, open_checkpoint
from gpt2cli.core.tensors import Tensors, open_tensors
from gpt2cli.errors import ModelFileError


def _open(directory: Path) -> Tensors:
    return open_tensors(open_checkpoint(directory, allow_pickle=True))


def _state(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def _check_same(directory: Path, state: dict[str, Tensor]) -> None:
    """The pickle in ``directory`` has exactly the numbers of ``state``, in their type."""
    tensors = _open(directory)
    for name in expected_shapes(open_checkpoint(directory, allow_pickle=True).config):
        array, kind = tensors.read_finite(name)
        expected = state[f"transformer.{name}"].detach()
        assert kind == {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[expected.dtype]
        expected = expected.contiguous()
        if kind == "BF16":
            expected = expected.view(torch.int16)
        assert array.tobytes() == expected.numpy().tobytes()
        assert tensors.info(name) is None


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def pickled(directory: Path) -> Path:
    """The same model, its weights only as ``pytorch_model.bin``."""
    torch.save(_state(directory), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


class TestPickles:
    def test_refused_unless_allowed(self, pickled: Path) -> None:
        with pytest.raises(ModelFileError, match="a pickle, which can carry code") as caught:
            open_checkpoint(pickled)
        assert caught.value.hint is not None and "--allow-pickle" in caught.value.hint

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("parameters", [True, False])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_same_numbers(self, tmp_path: Path, dtype: str, zipped: bool, parameters: bool) -> None:
        """In both of torch's formats, as tensors or as the parameters of a module."""
        directory = make_model(tmp_path, dtype=dtype)
        state = _state(directory)
        if parameters:
            state = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
        torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        (directory / "model.safetensors").unlink()
        _check_same(directory, state)

    def test_safetensors_come_first(self, directory: Path) -> None:
        (directory / "pytorch_model.bin").write_bytes(b"never read")
        assert _open(directory).info("wte.weight") is not None

    def test_shards(self, directory: Path) -> None:
        state = _state(directory)
        parts = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
        files = {name: [*parts][n % 2] for n, name in enumerate(state)}
        for name, file in files.items():
            parts[file][name] = state[name]
        for file, part in parts.items():
            torch.save(part, directory / file)
        write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": files})
        (directory / "model.safetensors").unlink()
        _check_same(directory, state)

    def test_views_in_any_order(self, pickled: Path) -> None:
        """A transposed tensor is read as what it shows, and one of another's storage as its part."""
        state = torch.load(pickled / "pytorch_model.bin")
        whole = torch.randn(300, 32)
        state["transformer.wte.weight"] = whole[7:264]
        name = "transformer.h.0.attn.c_proj.weight"
        state[name] = state[name].t()
        torch.save(state, pickled / "pytorch_model.bin")
        _check_same(pickled, state)

    def test_a_nan_is_named(self, pickled: Path) -> None:
        state = torch.load(pickled / "pytorch_model.bin")
        state["transformer.ln_f.bias"][3] = float("nan")
        torch.save(state, pickled / "pytorch_model.bin")
        with pytest.raises(ModelFileError, match=r"ln_f\.bias contains NaN"):
            _open(pickled).read_finite("ln_f.bias")

    @pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
    def test_code_is_not_run(self, pickled: Path, tmp_path: Path, how: str) -> None:
        target, payload = tmp_path / "target", io.BytesIO()
        evil = {"transformer.wte.weight": _Payload(target)}
        if how == "bare":
            pickle.dump(evil, payload)
        else:
            torch.save(evil, payload, _use_new_zipfile_serialization=how == "zip")
        (pickled / "pytorch_model.bin").write_bytes(payload.getvalue())
        with pytest.raises(ModelFileError, match="more than plain tensors"):
            _open(pickled)
        assert not target.exists()
        if how != "bare":
            torch.load(pickled / "pytorch_model.bin", weights_only=False)
            assert target.exists(), "the payload works, so it was the loader that stopped it"

    @pytest.mark.parametrize(
        "wrong",
        [
            torch.ones(257, 32, dtype=torch.float64),
            torch.ones(257, 32).to_sparse(),
            torch.ones(257, 32, device="meta"),
            [1.0, 2.0],
            None,
        ],
        ids=["float64", "sparse", "meta", "list", "none"],
    )
    def test_only_plain_tensors(self, pickled: Path, wrong: object) -> None:
        path = pickled / "pytorch_model.bin"
        state = torch.load(path)
        torch.save({**state, "transformer.wte.weight": wrong}, path)
        with pytest.raises(ModelFileError, match=r"wte.weight is not a tensor of type fp32, fp16 or bf16"):
            _open(pickled)

    def test_shapes_are_checked(self, pickled: Path) -> None:
        path = pickled / "pytorch_model.bin"
        torch.save({**torch.load(path), "transformer.wte.weight": torch.ones(256, 32)}, path)
        with pytest.raises(ModelFileError, match=r"wte.weight has shape \[256, 32\]"):
            _open(pickled)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_damaged_files(self, pickled: Path, zipped: bool) -> None:
        """Whatever torch's unpickler makes of broken bytes, it is one kind of error; never a crash."""
        path, pick = pickled / "pytorch_model.bin", random.Random(1)
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=zipped)
        whole, refused = path.read_bytes(), 0
        for n in range(120):
            damaged = bytearray(whole)
            if n % 3 == 0:
                del damaged[pick.randrange(len(damaged)) :]
            else:
                near_start = n % 3 == 1
                for _ in range(3):
                    at = pick.randrange(4000)
                    damaged[at if near_start else -1 - at] = pick.randrange(256)
            path.write_bytes(damaged)
            try:
                load_torch(pickled)
            except ModelFileError:
                refused += 1
        assert refused > 60
