"""From files to a model: every layout gives the same numbers, and what is damaged is refused."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import make_model, random_weights, write_json, write_weights
from torch import Tensor

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core import weights as weights_module
from gpt2cli.core.engine import Engine
from gpt2cli.core.weights import check_memory
from gpt2cli.errors import Gpt2cliError, ModelFileError
from gpt2cli.options import LoadOptions

IDS = torch.tensor([[5, 6, 7, 8, 200]])
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

# Standard deviation of the logits' error over that of the logits, on the random model below.
LARGEST_ERROR = {"fp32": 0, "fp16": 2e-3, "bf16": 0.04, "int8": 0.05, "int4": 0.6}


def _logits(directory: Path, precision: str = "fp32", *, allow_pickle: bool = False) -> Tensor:
    options = LoadOptions(precision=precision, allow_pickle=allow_pickle)  # type: ignore[arg-type]
    model = Engine.load(directory, options).model
    return model.forward(IDS, model.new_cache(), all_positions=True)[0]


def _state(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def _replace(directory: Path, name: str, tensor: Tensor) -> None:
    save_file({**_state(directory), name: tensor}, directory / "model.safetensors")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def pickled(directory: Path) -> Path:
    """The same model, its weights only as ``pytorch_model.bin``."""
    torch.save(_state(directory), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


class TestLayouts:
    @pytest.mark.parametrize("prefix", ["", "transformer."])
    @pytest.mark.parametrize("shards", [1, 4])
    def test_names_and_files(self, directory: Path, tmp_path: Path, prefix: str, shards: int) -> None:
        other = make_model(tmp_path / "other", prefix=prefix, shards=shards)
        assert torch.equal(_logits(other), _logits(directory))

    def test_legacy_buffers_are_passed_over(self, directory: Path) -> None:
        """Checkpoints of old carry the causal mask in each layer, in a type that weights never have."""
        expected = _logits(directory)
        _replace(directory, "transformer.h.0.attn.bias", torch.ones(1, 1, 64, 64, dtype=torch.bool).tril())
        _replace(directory, "transformer.h.1.attn.masked_bias", torch.tensor(-1e4))
        assert torch.equal(_logits(directory), expected)

    def test_a_tied_head_may_be_written_out(self, directory: Path) -> None:
        expected = _logits(directory)
        _replace(directory, "lm_head.weight", _state(directory)["transformer.wte.weight"].clone())
        assert torch.equal(_logits(directory), expected)

    def test_a_head_that_differs_is_used(self, directory: Path) -> None:
        """As transformers does, though the config says that it is tied."""
        expected = -_logits(directory)
        _replace(directory, "lm_head.weight", -_state(directory)["transformer.wte.weight"])
        torch.testing.assert_close(_logits(directory), expected)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_16_bit_files(self, tmp_path: Path, dtype: str) -> None:
        half = make_model(tmp_path / "half", dtype=dtype)
        whole = make_model(tmp_path / "whole")
        save_file({k: v.float() for k, v in _state(half).items()}, whole / "model.safetensors")
        assert torch.equal(_logits(half), _logits(whole))


class TestPrecisions:
    @pytest.fixture(scope="class")
    @staticmethod
    def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Wide enough for groups of 64."""
        directory = tmp_path_factory.mktemp("wide")
        return make_model(directory, n_embd=128, n_layer=3, vocab_size=512, std=0.1)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_near_fp32(self, wide: Path, precision: str) -> None:
        exact, found = _logits(wide), _logits(wide, precision)
        assert found.dtype == torch.float32
        assert float((found - exact).std() / exact.std()) <= LARGEST_ERROR[precision]

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_a_row_in_a_batch_is_as_alone(self, wide: Path, precision: str) -> None:
        """Within rounding of fp32 sums; in bf16 a sum may fall on the other side of a rounding."""
        model = Engine.load(wide, LoadOptions(precision=precision)).model  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(512, (4, 20), generator=generator)
        cache, caches = model.new_cache(rows=4), [model.new_cache() for _ in range(4)]
        tolerance = {"fp32": 1e-5, "fp16": 1e-5, "int8": 0.15}.get(precision, 0.05)
        for part in (ids[:, :17], ids[:, 17:18], ids[:, 18:]):
            batch = model.forward(part, cache)
            alone = torch.cat([model.forward(part[n : n + 1], caches[n]) for n in range(4)])
            torch.testing.assert_close(batch, alone, rtol=0, atol=tolerance)

    def test_the_kernels_are_named(self, wide: Path) -> None:
        for precision in PRECISIONS:
            info = Engine.load(wide, LoadOptions(precision=precision)).info  # type: ignore[arg-type]
            assert info.precision == precision and info.kernels and info.device == "cpu"

    def test_what_fp16_cannot_hold_stays_in_fp32(self, directory: Path) -> None:
        """fp16 ends at 65,504: such a weight would become infinity, or be cut."""
        name = "transformer.h.0.mlp.c_fc.weight"
        weight = _state(directory)[name]
        weight[0, 0] = 1e5
        _replace(directory, name, weight)
        torch.testing.assert_close(_logits(directory, "fp16"), _logits(directory), rtol=0, atol=0.05)
        kernels = Engine.load(directory, LoadOptions(precision="fp16")).info.kernels
        assert any("fp32" in kernel for kernel in kernels) and len(kernels) > 1


class TestDamage:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    @pytest.mark.parametrize(
        "name", ["wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.ln_2.bias", "ln_f.weight"]
    )
    def test_nan_and_infinity_are_refused(
        self, directory: Path, name: str, precision: str, bad: float
    ) -> None:
        tensor = _state(directory)[f"transformer.{name}"]
        tensor.view(-1)[tensor.numel() // 2] = bad
        _replace(directory, f"transformer.{name}", tensor)
        with pytest.raises(ModelFileError, match=rf"{name} contains NaN or infinity"):
            _logits(directory, precision)

    def test_nan_in_a_head_of_its_own(self, tmp_path: Path) -> None:
        directory = make_model(tmp_path, tie_word_embeddings=False, dtype="bfloat16")
        head = _state(directory)["lm_head.weight"]
        head[3, 3] = float("nan")
        _replace(directory, "lm_head.weight", head)
        with pytest.raises(ModelFileError, match=r"lm_head\.weight contains NaN"):
            _logits(directory)

    def test_finite_weights_that_overflow(self, directory: Path) -> None:
        """No check of the weights can see it; the first draw does."""
        for name in ("transformer.wte.weight", "transformer.ln_f.weight"):
            _replace(directory, name, _state(directory)[name] * 1e30)
        engine = Engine.load(directory)
        with pytest.raises(Gpt2cliError, match="NaN or infinity"):
            engine.generate("a")


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


class TestPickles:
    def test_refused_unless_allowed(self, pickled: Path) -> None:
        with pytest.raises(ModelFileError, match="a pickle, which can carry code") as caught:
            Engine.load(pickled)
        assert caught.value.hint is not None and "--allow-pickle" in caught.value.hint

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("parameters", [True, False])
    def test_same_numbers(self, directory: Path, zipped: bool, parameters: bool) -> None:
        """In both of torch's formats, as tensors or as the parameters of a module."""
        expected, state = _logits(directory), _state(directory)
        if parameters:
            state = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
        torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        (directory / "model.safetensors").unlink()
        assert torch.equal(_logits(directory, allow_pickle=True), expected)
        assert _logits(directory, "fp16", allow_pickle=True).isfinite().all()

    def test_safetensors_come_first(self, directory: Path) -> None:
        (directory / "pytorch_model.bin").write_bytes(b"never read")
        _logits(directory, allow_pickle=True)

    def test_shards(self, directory: Path) -> None:
        expected, state = _logits(directory), _state(directory)
        parts = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
        files = {name: [*parts][n % 2] for n, name in enumerate(state)}
        for name, file in files.items():
            parts[file][name] = state[name]
        for file, part in parts.items():
            torch.save(part, directory / file)
        write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": files})
        (directory / "model.safetensors").unlink()
        assert torch.equal(_logits(directory, allow_pickle=True), expected)

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
            Engine.load(pickled, LoadOptions(allow_pickle=True))
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
            Engine.load(pickled, LoadOptions(allow_pickle=True))

    def test_shapes_are_checked(self, pickled: Path) -> None:
        path = pickled / "pytorch_model.bin"
        torch.save({**torch.load(path), "transformer.wte.weight": torch.ones(256, 32)}, path)
        with pytest.raises(ModelFileError, match=r"wte.weight has shape \[256, 32\]"):
            Engine.load(pickled, LoadOptions(allow_pickle=True))

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
                Engine.load(pickled, LoadOptions(allow_pickle=True))
            except ModelFileError:
                refused += 1
        assert refused > 60


class TestMemory:
    def test_too_little(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A message before loading, instead of being killed while loading."""
        monkeypatch.setattr(weights_module, "available_memory", lambda: 1000)
        with pytest.raises(
            Gpt2cliError, match=r"needs about 0.0 GB of memory in fp(16|32), and 0.0 GB are free"
        ) as e:
            Engine.load(directory)
        assert e.value.exit_code == 1 and e.value.hint is not None and "int8" in e.value.hint

    def test_it_depends_on_the_precision(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = open_checkpoint(directory)
        for precision, size in (("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)):
            needed = checkpoint.config.parameters * size
            monkeypatch.setattr(weights_module, "available_memory", lambda needed=needed: needed)
            check_memory(checkpoint, precision)
            monkeypatch.setattr(weights_module, "available_memory", lambda needed=needed: needed - 1)
            with pytest.raises(Gpt2cliError):
                check_memory(checkpoint, precision)

    def test_a_system_that_does_not_say(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights_module, "available_memory", lambda: None)
        check_memory(open_checkpoint(directory), "fp32")

    def test_this_system(self) -> None:
        free = weights_module.available_memory()
        assert free is None or 2**20 < free < 2**50


def test_parameters_count_what_is_in_the_file(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 50}
    config |= {"n_positions": 10, "n_inner": 7, "tie_word_embeddings": False}
    tensors = random_weights(config)
    write_json(tmp_path / "config.json", config)
    write_weights(tmp_path, tensors)
    assert open_checkpoint(tmp_path).config.parameters == sum(t.numel() for t in tensors.values())
