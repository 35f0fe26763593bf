"""The matrix kernels: near the exact product, and no row of a batch changes another's result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2cli.core.linear import (
    INT4_GROUP,
    Fp32Linear,
    Int4Linear,
    Int8Linear,
    make_linear,
    quantise_int4,
    quantise_int8,
)

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

# Standard deviation of the error over that of the result, for weights and inputs of a normal distribution.
LARGEST_ERROR = {"fp32": 1e-6, "fp16": 5e-4, "bf16": 8e-3, "int8": 1.5e-2, "int4": 0.15}

# [out, in]: an odd vocabulary, what fills no group, no block of 16, a single output, a real head's width.
SHAPES = [(257, 32), (96, 128), (64, 192), (30, 30), (48, 24), (17, 64), (1, 64), (701, 128)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(outputs: int, inputs: int, seed: int = 1) -> Tensor:
    """A view [out, in] on GPT-2's own layout [in, out], as the checkpoint gives it."""
    return (0.2 * _random(inputs, outputs, seed=seed)).t()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_near_the_exact_product(precision: str, shape: tuple[int, int], biased: bool) -> None:
    weight, bias = _weight(*shape), _random(shape[0], seed=2) if biased else None
    linear, x = make_linear(weight, bias, precision), _random(40, shape[1])
    exact = x.double() @ weight.t().double()
    exact = exact if bias is None else exact + bias.double()
    found = linear(x)
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert float((found - exact).std() / exact.std()) < LARGEST_ERROR[precision]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_change_each_other(precision: str, shape: tuple[int, int]) -> None:
    """A kernel that quantises activations over the whole batch would let a large row spoil a small one."""
    linear, x = make_linear(_weight(*shape), _random(shape[0], seed=2), precision), _random(4, shape[1])
    alone = torch.cat([linear(row[None]) for row in x])
    among_large = linear(torch.cat([x, 1000 * _random(9, shape[1], seed=3)]))[:4]
    torch.testing.assert_close(linear(x), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(among_large, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_leading_dimensions(precision: str) -> None:
    linear, x = make_linear(_weight(96, 64), None, precision), _random(2, 3, 64)
    torch.testing.assert_close(linear(x), linear(x.view(6, 64)).view(2, 3, 96), rtol=0, atol=1e-5)
    transposed = _random(3, 2, 64).transpose(0, 1)
    torch.testing.assert_close(linear(transposed), linear(transposed.contiguous()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_on_disk(precision: str, dtype: torch.dtype) -> None:
    """The same values give the same result, whatever type they come in."""
    weight = _weight(64, 64).to(dtype)
    x = _random(5, 64)
    found = make_linear(weight, None, precision)(x)
    torch.testing.assert_close(found, make_linear(weight.float(), None, precision)(x), rtol=0, atol=0)


def test_fp16_sums_in_fp32() -> None:
    """Products and sums beyond fp16's 65,504 are no infinity."""
    found = make_linear(torch.full((16, 64), 100.0), None, "fp16")(torch.full((1, 64), 1000.0))
    torch.testing.assert_close(found, torch.full((1, 16), 6.4e6))


def test_int8_rounds_to_the_nearest_step_of_its_row() -> None:
    weight = _weight(33, 48)
    weight[5] = 0
    quantised, scales = quantise_int8(weight)
    assert quantised.dtype == torch.int8 and quantised.abs().max() == 127
    error = (quantised * scales[:, None] - weight).abs()
    assert bool((error <= scales[:, None] * 0.5001).all())
    assert bool((quantised[5] == 0).all())


def test_int4_rounds_to_the_nearest_step_of_its_group() -> None:
    weight = _weight(33, 2 * INT4_GROUP)
    weight[5, :INT4_GROUP] = 0
    quantised, scales = quantise_int4(weight, INT4_GROUP)
    assert quantised.min() >= 0 and quantised.max() <= 15 and scales.shape == (33, 2)
    back = (quantised - 8).view(33, 2, INT4_GROUP) * scales[..., None]
    error = (back - weight.reshape(33, 2, INT4_GROUP)).abs()
    assert bool((error <= scales[..., None] * 0.5001).all())
    assert bool((back[5, 0] == 0).all())


def test_the_fallbacks_say_so() -> None:
    """Shapes that the packed kernels refuse are computed in fp32 with the same rounding."""
    packed, fallback = make_linear(_weight(48, 64), None, "int8"), make_linear(_weight(48, 24), None, "int8")
    assert isinstance(packed, Int8Linear) and isinstance(fallback, Fp32Linear)
    assert fallback.kernel == "fp32, weights rounded to int8"
    packed, fallback = make_linear(_weight(48, 64), None, "int4"), make_linear(_weight(17, 64), None, "int4")
    assert isinstance(packed, Int4Linear) and isinstance(fallback, Fp32Linear)
    assert fallback.kernel == "fp32, weights rounded to int4"
    narrow = make_linear(_weight(48, 32), None, "int4")
    assert isinstance(narrow, Int8Linear)


@pytest.mark.parametrize(("precision", "exact"), [("int8", 0.006), ("int4", 0.006)])
def test_the_packed_kernels_compute_what_was_quantised(precision: str, exact: float) -> None:
    """Only bf16's rounding lies between a packed kernel and the quantised weights in fp32."""
    weight, x = _weight(64, 128), _random(20, 128)
    if precision == "int8":
        quantised, scales = quantise_int8(weight)
        rounded = quantised * scales[:, None]
    else:
        quantised, scales = quantise_int4(weight, INT4_GROUP)
        rounded = ((quantised - 8).view(64, 2, INT4_GROUP) * scales[..., None]).view(64, 128)
    expected = x @ rounded.t()
    found = make_linear(weight, None, precision)(x)
    assert float((found - expected).std() / expected.std()) < exact
