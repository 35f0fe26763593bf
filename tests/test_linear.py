"""The matrix kernels: near the exact product, and no row of a batch changes another's result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2cli.core import linear as linear_module
from gpt2cli.core.linear import (
    FbgemmFp16Linear,
    FbgemmInt8Linear,
    Int4Linear,
    Int8Linear,
    Linear,
    has_fbgemm,
)
from gpt2cli.core.quantise import INT4_GROUP, pack_int4, quantise_int4, quantise_int8, to_matrix, unpack_int4

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

# Standard deviation of the error over that of the result, for weights and inputs of a normal distribution.
LARGEST_ERROR = {"fp32": 1e-6, "fp16": 5e-4, "bf16": 8e-3, "int8": 1.5e-2, "int4": 0.15}

# [out, in]: an odd vocabulary, what fills no group, no block of 16, a single output, a real head's width.
SHAPES = [(257, 32), (96, 128), (64, 192), (30, 30), (48, 24), (17, 64), (1, 64), (701, 128), (5, 2)]


def make_linear(weight: Tensor, bias: Tensor | None, precision: str) -> Linear:
    return linear_module.make_linear(to_matrix(weight, precision), bias)  # type: ignore[arg-type]


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
    torch.testing.assert_close(among_large, linear(x), rtol=0, atol=1e-5)
    # One row and several are rounded to 8 bits each in its way.
    tolerance = 0.05 if "int8" in linear.kernel else 1e-5
    torch.testing.assert_close(linear(x), alone, rtol=0, atol=tolerance * float(alone.std()))


@pytest.mark.parametrize("floor", [None, -0.17])
def test_a_row_of_int8_is_the_same_in_any_batch(floor: float | None) -> None:
    """To the last bit: no row's values go beyond the range that all share."""
    linear = linear_module.make_linear(to_matrix(_weight(96, 64), "int8"), _random(96), floor)
    for seed in range(30):
        x = _random(12, 64, seed=seed).clamp_(min=-100.0 if floor is None else floor)
        assert torch.equal(linear(x)[:5], linear(x[:5]))


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


def test_int4_takes_the_step_of_the_smallest_error() -> None:
    weight = _weight(33, 2 * INT4_GROUP)
    weight[5, :INT4_GROUP] = 0
    quantised, scales = quantise_int4(weight)
    assert quantised.min() >= 0 and quantised.max() <= 15 and scales.shape == (33, 2)
    grouped = weight.reshape(33, 2, INT4_GROUP)
    back = (quantised.float() - 8).view(33, 2, INT4_GROUP) * scales.float()[..., None]
    assert bool((back[5, 0] == 0).all())
    simple = grouped.abs().amax(dim=2, keepdim=True).clamp_min(1e-12) / 7
    plain = torch.round(grouped / simple).clamp(-8, 7) * simple
    assert float((back - grouped).square().sum()) < 0.9 * float((plain - grouped).square().sum())


def test_int4_in_bytes() -> None:
    quantised = torch.randint(16, (6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_int4(quantised)
    assert packed.shape == (6, 5) and packed.dtype == torch.uint8
    assert torch.equal(unpack_int4(packed), quantised.int())


@pytest.mark.skipif(not has_fbgemm(), reason="torch has no fbgemm here")
class TestFbgemm:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("rows", [1, 2, 40])
    def test_packing_changes_no_more_than_the_order_of_sums(self, shape: tuple[int, int], rows: int) -> None:
        linear, x = make_linear(_weight(*shape), _random(shape[0]), "fp16"), _random(rows, shape[1])
        assert isinstance(linear, FbgemmFp16Linear) and not linear.packed
        before = linear(x)
        linear.pack()
        assert linear.packed
        torch.testing.assert_close(linear(x), before, rtol=0, atol=1e-5)

    def test_a_slice_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linear, x = make_linear(_weight(701, 128), None, "fp16"), _random(3, 128)
        whole = linear(x)
        monkeypatch.setattr(linear_module, "COLD_WEIGHTS", 1000)
        torch.testing.assert_close(linear(x), whole, rtol=0, atol=1e-5)

    @pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no VNNI here")
    @pytest.mark.parametrize("floor", [None, -0.17])
    def test_int8_rounds_each_row_by_its_own_step(self, floor: float | None) -> None:
        """Rows of every size, of one sign, of zeros: several are as near the product as one."""
        weight, bias = _weight(96, 128), _random(96, seed=2)
        matrix = to_matrix(weight, "int8")
        linear = linear_module.make_linear(matrix, bias, floor)
        assert isinstance(linear, FbgemmInt8Linear) and matrix.scales is not None
        x = _random(64, 128) * torch.logspace(-1, 4, 64)[:, None]
        x[3], x[4], x[5] = 0, x[4].abs(), -x[5].abs()
        if floor is not None:
            x = torch.nn.functional.gelu(x)
        exact = x.double() @ (matrix.values * matrix.scales[:, None]).double().t() + bias
        size = exact.std(dim=1, keepdim=True)
        error = ((linear(x) - exact) / size).square().mean(dim=1).sqrt()
        assert float(error.max()) < (0.02 if floor is None else 0.1)
        among_large = linear(torch.cat([x, 1e6 * x[-1:]]))[:64]
        torch.testing.assert_close(among_large, linear(x), rtol=0, atol=0)

    def test_the_global_choice_of_an_engine_is_left_alone(self) -> None:
        before = torch.backends.quantized.engine
        for precision in ("fp16", "int8"):
            linear = make_linear(_weight(16, 64), None, precision)
            if isinstance(linear, FbgemmFp16Linear):
                linear.pack()
        assert torch.backends.quantized.engine == before


def test_the_fallbacks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that the packed kernels refuse, and machines that have none, compute in plain arithmetic."""
    packed, fallback = make_linear(_weight(48, 64), None, "int4"), make_linear(_weight(17, 64), None, "int4")
    assert isinstance(packed, Int4Linear)
    assert fallback.kernel.endswith("fp32, weights rounded to int4")
    narrow = make_linear(_weight(48, 24), None, "int4")
    assert "int8" in narrow.kernel
    monkeypatch.setattr(linear_module, "has_fbgemm", lambda: False)
    monkeypatch.setattr(linear_module, "_has_onednn", lambda _: False)
    assert make_linear(_weight(48, 64), None, "fp32").kernel == "fp32"
    assert make_linear(_weight(48, 64), None, "bf16").kernel == "bfloat16"
    assert make_linear(_weight(48, 64), None, "fp16").kernel == "fp32, weights rounded to fp16"
    assert isinstance(make_linear(_weight(48, 64), None, "int8"), Int8Linear)
    assert make_linear(_weight(48, 24), None, "int8").kernel == "fp32, weights rounded to int8"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fallbacks_compute_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = _weight(64, 128), _random(20, 128)
    expected = make_linear(weight, None, precision)(x)
    monkeypatch.setattr(linear_module, "has_fbgemm", lambda: False)
    monkeypatch.setattr(linear_module, "_has_onednn", lambda _: False)
    found = make_linear(weight, None, precision)(x)
    assert float((found - expected).std() / expected.std()) < 2 * LARGEST_ERROR[precision]


@pytest.mark.parametrize(("precision", "exact"), [("int8", 0.02), ("int4", 0.006)])
def test_the_packed_kernels_compute_what_was_quantised(precision: str, exact: float) -> None:
    """Only the rounding of activations lies between a packed kernel and the quantised weights in fp32."""
    weight, x = _weight(64, 128), _random(20, 128)
    if precision == "int8":
        quantised, scales = quantise_int8(weight)
        rounded = quantised * scales[:, None]
    else:
        quantised, scales = quantise_int4(weight)
        grouped = (quantised.float() - 8).view(64, -1, INT4_GROUP) * scales.float()[..., None]
        rounded = grouped.view(64, 128)
    expected = x @ rounded.t()
    found = make_linear(weight, None, precision)(x)
    assert float((found - expected).std() / expected.std()) < exact
