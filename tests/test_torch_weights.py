"""Precisions of the torch model: what is rounded, what stays, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import load_torch, make_model, replace_tensor, tensors_of, text_logits
from torch import Tensor

from gpt2cli.analysis.logprobs import score_ids
from gpt2cli.core.quantise import dequantise, quantise
from gpt2cli.errors import ModelFileError

IDS = [5, 6, 7, 8, 200]
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

# Standard deviation of the logits' error over that of the logits, on the random model below.
LARGEST_ERROR = {"fp32": 0, "fp16": 2e-3, "bf16": 0.04, "int8": 0.04, "int4": 0.6}


def _logits(directory: Path, precision: str = "fp32") -> Tensor:
    found: Tensor = text_logits(load_torch(directory, precision), IDS)[0]
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for groups of 64."""
    return make_model(tmp_path_factory.mktemp("wide"), n_embd=128, n_layer=3, vocab_size=512, std=0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_near_fp32(wide: Path, precision: str) -> None:
    exact, found = _logits(wide), _logits(wide, precision)
    assert found.dtype == torch.float32
    assert float((found - exact).std() / exact.std()) <= LARGEST_ERROR[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [{"n_embd": 128}, {"n_embd": 36, "n_inner": 70}], ids=str)
def test_each_weight_is_what_was_asked_for(tmp_path: Path, shape: dict[str, int], precision: str) -> None:
    """The numbers of a matrix, in fp32, are those of the type or of the quantiser; the rest stays."""
    directory = make_model(tmp_path, dtype="float32", **shape)
    state, weights = tensors_of(directory), load_torch(directory, precision).weights
    exact = state["transformer.h.1.mlp.c_proj.weight"].t()
    block = weights.blocks[1]
    for found, expected, bits in (
        (block.mlp_proj.weight, exact, {"int8": 8, "int4": 4}),
        (weights.head.weight, state["transformer.wte.weight"], {"int8": 8, "int4": 8}),
    ):
        if precision in bits:
            expected = torch.from_numpy(dequantise(*quantise(expected.numpy(), bits[precision])))  # type: ignore[arg-type]
        elif precision != "fp32":
            expected = expected.to({"fp16": torch.float16, "bf16": torch.bfloat16}[precision]).float()
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(weights.wte, state["transformer.wte.weight"])
    assert torch.equal(weights.wpe, state["transformer.wpe.weight"])
    assert torch.equal(block.ln_2.bias, state["transformer.h.1.ln_2.bias"])
    assert torch.equal(block.mlp_proj.bias, state["transformer.h.1.mlp.c_proj.bias"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_on_disk(tmp_path: Path, dtype: str, precision: str) -> None:
    """The same values give the same result, whatever type they come in."""
    half = make_model(tmp_path / "half", dtype=dtype)
    whole = make_model(tmp_path / "whole")
    save_file({k: v.float() for k, v in tensors_of(half).items()}, whole / "model.safetensors")
    assert torch.equal(_logits(half, precision), _logits(whole, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_in_a_batch_is_as_alone(wide: Path, precision: str) -> None:
    """Within rounding of fp32 sums: a large text beside it does not round a small one."""
    model = load_torch(wide, precision)
    rows = np.random.default_rng(1).integers(0, 512, (4, 20)).tolist()
    alone = [text_logits(model, row)[0] for row in rows]
    torch.testing.assert_close(text_logits(model, *rows), alone, rtol=0, atol=1e-5)


def test_the_kernels_are_named(wide: Path) -> None:
    kernels = {precision: load_torch(wide, precision).info for precision in PRECISIONS}
    assert all(info.precision == precision and info.device == "cpu" for precision, info in kernels.items())
    assert kernels["fp32"].kernels == ("torch fp32",)
    assert kernels["fp16"].kernels == ("torch fp32, weights rounded to fp16",)
    assert [("int4" in name, "int8" in name) for name in kernels["int4"].kernels] == [
        (True, False), (False, True)
    ]  # fmt: skip


def test_what_fp16_cannot_hold_stays_in_fp32(directory: Path) -> None:
    """fp16 ends at 65,504: such a weight would become infinity, or be cut."""
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = tensors_of(directory)[name]
    weight[0, 0] = 1e5
    replace_tensor(directory, name, weight)
    torch.testing.assert_close(_logits(directory, "fp16"), _logits(directory), rtol=0, atol=0.05)
    kernels = load_torch(directory, "fp16").info.kernels
    assert "torch fp32" in kernels and len(kernels) == 2


def test_a_head_that_differs_is_used(directory: Path) -> None:
    """As transformers does, though the config says that it is tied."""
    expected = -_logits(directory)
    replace_tensor(directory, "lm_head.weight", -tensors_of(directory)["transformer.wte.weight"])
    torch.testing.assert_close(_logits(directory), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "name", ["wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.ln_2.bias", "ln_f.weight"]
)
def test_nan_and_infinity_are_refused(directory: Path, name: str, precision: str, bad: float) -> None:
    tensor = tensors_of(directory)[f"transformer.{name}"]
    tensor.view(-1)[tensor.numel() // 2] = bad
    replace_tensor(directory, f"transformer.{name}", tensor)
    with pytest.raises(ModelFileError, match=rf"{name} contains NaN or infinity"):
        load_torch(directory, precision)


def test_nan_in_a_head_of_its_own(tmp_path: Path) -> None:
    directory = make_model(tmp_path, tie_word_embeddings=False, dtype="bfloat16")
    head = tensors_of(directory)["lm_head.weight"]
    head[3, 3] = float("nan")
    replace_tensor(directory, "lm_head.weight", head)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight contains NaN"):
        load_torch(directory)


def test_finite_weights_that_overflow(directory: Path) -> None:
    """No check of the weights can see it; the first score does."""
    for name in ("transformer.wte.weight", "transformer.ln_f.weight"):
        replace_tensor(directory, name, tensors_of(directory)[name] * 1e30)
    with pytest.raises(ModelFileError, match="NaN or infinity"):
        score_ids(load_torch(directory), IDS)


def test_fp32_weights_stay_in_the_file(directory: Path) -> None:
    """They are views on its pages: nothing is copied, and processes share them."""
    weights = load_torch(directory).weights
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()] if Path(
        "/proc/self/maps"
    ).exists() else []  # fmt: skip
    spans = [span for span, *_, name in (line for line in lines) if name.endswith("model.safetensors")]
    if not lines:
        pytest.skip("no /proc here")

    def inside(tensor: Tensor) -> bool:
        for span in spans:
            first, last = (int(number, 16) for number in span.split("-"))
            if first <= tensor.data_ptr() < last:
                return True
        return False

    assert inside(weights.wte) and inside(weights.head.weight) and inside(weights.blocks[0].c_attn.weight)
