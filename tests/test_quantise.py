"""The numbers of int8 and int4, against loops that are plain, and against what they must be near."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2cli.core.quantise import GROUP, SHRINKS, dequantise, quantise

Floats = NDArray[np.float32]
SHAPES = [(5, 64), (3, 100), (7, 1), (4, 63), (2, 200), (1, 65), (300, 128)]


def _weight(outputs: int, inputs: int, size: float = 1.0, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    return (size * random.standard_normal((outputs, inputs))).astype(np.float32)


def _bf16(value: np.float32, *, upwards: bool = False) -> np.float32:
    """The nearest bf16 (half to even), or the nearest that is not below a positive value."""
    bits = int(value.view(np.uint32))
    rest = bits & 0xFFFF
    up = rest > 0 if upwards else rest > 0x8000 or (rest == 0x8000 and bits & 0x10000 != 0)
    return np.uint32((bits & 0xFFFF0000) + (0x10000 if up else 0)).view(np.float32)


def _group(weights: Floats, bits: int) -> tuple[Iterable[int], np.float32]:
    """One group, number by number in float32."""
    f32 = np.float32
    largest = max(abs(weight) for weight in weights)
    if bits == 8:
        scale = _bf16(largest / f32(127), upwards=True)
        return [int(np.clip(np.rint(w / scale), -127, 127)) if scale else 0 for w in weights], scale
    sign = f32(-1) if largest in weights else f32(1)
    found: list[tuple[np.float32, np.float32]] = []
    for shrink in SHRINKS:
        step = _bf16(sign * f32(shrink) * max(largest, f32(1e-12)) / f32(8))
        error = f32(0)
        for weight in weights:
            wrong = np.clip(np.rint(weight / step), -8, 7) * step - weight
            error += wrong * wrong
        found.append((error, step))
    scale = min(found, key=lambda pair: pair[0])[1]
    return [int(np.clip(np.rint(w / scale), -8, 7)) for w in weights], scale


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1.0, 1e-20, 1e-41, 1e25])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_as_by_hand(shape: tuple[int, int], size: float, bits: int) -> None:
    """Of any size, down to what float32 can hardly tell from zero, up to squares that are infinite."""
    weight = _weight(*shape, size)
    weight[0] = 0
    weight[-1, 0] = -np.abs(weight).max()
    numbers, scales = quantise(weight, bits)  # type: ignore[arg-type]
    assert (numbers.dtype, scales.dtype) == (np.int8, np.float32)
    assert (numbers.shape, scales.shape) == (shape, (shape[0], -(-shape[1] // GROUP)))
    for row, (found, steps) in enumerate(zip(numbers, scales, strict=True)):
        for group, step in enumerate(steps):
            here = slice(group * GROUP, (group + 1) * GROUP)
            expected, scale = _group(weight[row, here], bits)
            assert (found[here].tolist(), step) == ([*expected], scale)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_view_gives_the_same(shape: tuple[int, int], bits: int) -> None:
    """Conv1D's weights come transposed; and how many rows are worked on at once does not matter."""
    weight = _weight(*shape)
    expected = quantise(weight, bits)  # type: ignore[arg-type]
    found = quantise(np.ascontiguousarray(weight.T).T, bits)  # type: ignore[arg-type]
    rows = [quantise(row[None], bits) for row in weight]  # type: ignore[arg-type]
    for n in range(2):
        assert np.array_equal(found[n], expected[n])
        assert np.array_equal(np.concatenate([row[n] for row in rows]), expected[n])


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_are_bf16(bits: int) -> None:
    _, scales = quantise(_weight(300, 128), bits)  # type: ignore[arg-type]
    assert not (scales.view(np.uint32) & 0xFFFF).any()


def test_int8_rounds_to_the_nearest_step() -> None:
    weight = _weight(33, 100)
    weight[5] = 0
    numbers, scales = quantise(weight, 8)
    assert numbers.min() >= -127 and np.abs(numbers).max() >= 126
    steps = np.repeat(scales, GROUP, axis=1)[:, :100]
    assert (np.abs(dequantise(numbers, scales) - weight) <= 0.5001 * steps).all()
    assert not numbers[5].any() and not scales[5].any()


def test_int4_takes_the_step_of_the_smallest_error() -> None:
    weight = _weight(33, 2 * GROUP)
    weight[5, :GROUP] = 0
    numbers, scales = quantise(weight, 4)
    assert (numbers.min(), numbers.max()) == (-8, 7)
    back = dequantise(numbers, scales)
    assert not back[5, :GROUP].any()
    grouped = weight.reshape(33, 2, GROUP)
    simple = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), 1e-12) / 7
    plain = np.clip(np.rint(grouped / simple), -8, 7) * simple
    assert np.square(back - weight).sum() < 0.9 * np.square(plain - grouped).sum()
