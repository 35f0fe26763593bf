"""From files to numbers: every layout gives the same, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_model, random_weights, replace_tensor, tensors_of, write_json, write_weights

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.arrays import as_float32, is_finite
from gpt2cli.core.tensors import Tensors, open_tensors
from gpt2cli.errors import ModelFileError


def _open(directory: Path) -> Tensors:
    return open_tensors(open_checkpoint(directory))


def _values(directory: Path) -> dict[str, list[float]]:
    """Every tensor of a model, under its canonical name."""
    checkpoint = open_checkpoint(directory)
    tensors = open_tensors(checkpoint)
    return {name: as_float32(*tensors.read_finite(name)).ravel().tolist() for name in checkpoint.tensors}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("shards", [1, 4])
def test_names_files_and_types(tmp_path: Path, prefix: str, shards: int, dtype: str) -> None:
    found = _values(make_model(tmp_path, prefix=prefix, shards=shards, dtype=dtype))
    config = json.loads((tmp_path / "config.json").read_text())
    expected = random_weights(config, dtype=dtype, prefix="")
    assert found == {name: tensor.float().ravel().tolist() for name, tensor in expected.items()}


def test_a_view_on_the_file(directory: Path) -> None:
    """What is read is where the table says, and takes no memory of its own."""
    checkpoint = open_checkpoint(directory)
    tensors = open_tensors(checkpoint)
    info = tensors.info("wte.weight")
    assert info == checkpoint.tensors["wte.weight"]
    array, kind = tensors.read("wte.weight")
    assert (kind, array.dtype, array.shape) == ("F32", np.float32, (257, 32))
    assert not array.flags.owndata and array.flags.aligned
    data = info.file.read_bytes()[info.offset : info.offset + info.size]
    assert array.tobytes() == data
    before = array.copy()
    tensors.drop("wte.weight")
    tensors.close()
    tensors.close()
    assert np.array_equal(array, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spaces", range(1, 5))
def test_any_alignment(tmp_path: Path, spaces: int, dtype: str) -> None:
    """An odd header leaves the data where no processor may read them; the file is valid all the same."""
    directory = make_model(tmp_path / "model", dtype=dtype)
    expected, path = _values(directory), directory / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * spaces
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert _values(directory) == expected
    tensors = _open(directory)
    assert all(tensors.read(name)[0].flags.aligned for name in expected)


def test_legacy_buffers_are_passed_over(directory: Path) -> None:
    """Checkpoints of old carry the causal mask in each layer, in a type that weights never have."""
    expected = _values(directory)
    replace_tensor(directory, "transformer.h.0.attn.bias", torch.ones(1, 1, 64, 64, dtype=torch.bool).tril())
    replace_tensor(directory, "transformer.h.1.attn.masked_bias", torch.tensor(-1e4))
    assert _values(directory) == expected


class TestHead:
    def test_tied(self, directory: Path) -> None:
        assert _open(directory).head_name() == "wte.weight"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_tied_and_written_out(self, tmp_path: Path, dtype: torch.dtype) -> None:
        """Also in another type than the embeddings', if the numbers are the same."""
        directory = make_model(tmp_path / "model", dtype="bfloat16")
        embeddings = tensors_of(directory)["transformer.wte.weight"]
        replace_tensor(directory, "lm_head.weight", embeddings.to(dtype))
        if torch.equal(embeddings.to(dtype).float(), embeddings.float()):
            assert _open(directory).head_name() == "wte.weight"
        else:
            assert _open(directory).head_name() == "lm_head.weight"

    def test_one_that_differs_is_used(self, directory: Path) -> None:
        """As transformers does, though the config says that it is tied."""
        head = tensors_of(directory)["transformer.wte.weight"].clone()
        head[-1, -1] += 1
        replace_tensor(directory, "lm_head.weight", head)
        assert _open(directory).head_name() == "lm_head.weight"

    def test_untied(self, tmp_path: Path) -> None:
        """Even one that happens to be the same."""
        directory = make_model(tmp_path / "model", tie_word_embeddings=False)
        replace_tensor(directory, "lm_head.weight", tensors_of(directory)["transformer.wte.weight"].clone())
        assert _open(directory).head_name() == "lm_head.weight"


class TestDamage:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("name", ["wte.weight", "h.1.attn.c_attn.weight", "h.0.ln_2.bias"])
    def test_nan_and_infinity_are_refused(self, tmp_path: Path, name: str, dtype: str, bad: float) -> None:
        directory = make_model(tmp_path, dtype=dtype)
        tensor = tensors_of(directory)[f"transformer.{name}"]
        tensor.view(-1)[tensor.numel() // 2] = bad
        replace_tensor(directory, f"transformer.{name}", tensor)
        with pytest.raises(ModelFileError, match=rf"{name} contains NaN or infinity"):
            _values(directory)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_every_bit_pattern(self, dtype: torch.dtype) -> None:
        """Of 16 bits all, of 32 the upper half's; torch says which are finite."""
        bits = torch.arange(2**16, dtype=torch.int32)
        tensor = ((bits << 16).view(torch.float32) if dtype == torch.float32
                  else bits.to(torch.int16).view(dtype))  # fmt: skip
        kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        raw = tensor.view(torch.int16).numpy().view(np.uint16) if kind == "BF16" else tensor.numpy()
        assert [is_finite(raw[n : n + 1], kind) for n in range(2**16)] == tensor.isfinite().tolist()
        assert not is_finite(raw, kind)
        assert is_finite(raw[tensor.isfinite().numpy()], kind)

    def test_a_file_that_was_cut_short_since(self, directory: Path) -> None:
        """After its header was checked: an error, and no signal that kills the process."""
        checkpoint = open_checkpoint(directory)
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        tensors = open_tensors(checkpoint)
        with pytest.raises(ModelFileError, match="cut short"):
            for name in checkpoint.tensors:
                tensors.read_finite(name)

    @pytest.mark.parametrize("how", ["gone", "empty"])
    def test_a_file_that_is_not_there_any_more(self, directory: Path, how: str) -> None:
        checkpoint = open_checkpoint(directory)
        path = directory / "model.safetensors"
        path.unlink()
        if how == "empty":
            path.touch()
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            open_tensors(checkpoint).read("wte.weight")

    def test_a_tensor_that_is_not_there(self, directory: Path) -> None:
        tensors = _open(directory)
        assert "lm_head.weight" not in tensors and "wte.weight" in tensors
        with pytest.raises(KeyError):
            tensors.read("lm_head.weight")


def test_parameters_count_what_is_in_the_file(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 50}
    config |= {"n_positions": 10, "n_inner": 7, "tie_word_embeddings": False}
    tensors = random_weights(config)
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path, tensors)
    assert open_checkpoint(tmp_path).config.parameters == sum(t.numel() for t in tensors.values())


def test_without_torch(directory: Path) -> None:
    """For a safetensors file; in a process of its own."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from gpt2cli.checkpoint import open_checkpoint;"
        "from gpt2cli.core.tensors import open_tensors; from gpt2cli.core.quantise import quantise\n"
        "tensors = open_tensors(open_checkpoint(Path(sys.argv[1])))\n"
        "quantise(tensors.read_finite('wte.weight')[0], 8)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
