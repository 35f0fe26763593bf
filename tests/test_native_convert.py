"""Matrices as the kernels read them: the library's numbers are those of `core/quantise.py` and of numpy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from native_models import needs_native
from numpy.typing import NDArray
from safetensors.torch import save_file
from support import make_model

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.arrays import Array, as_float32
from gpt2cli.core.native import packed as packed_module
from gpt2cli.core.native.library import GROUP, INPUTS, OUTPUTS, PANEL
from gpt2cli.core.native.packed import Source, check_finite, kind_of, pack, packed_shape
from gpt2cli.core.quantise import Kind, quantise
from gpt2cli.core.tensors import Tensors, open_tensors
from gpt2cli.errors import ModelFileError

pytestmark = needs_native

Floats = NDArray[np.float32]
SHAPES = [(1, 1), (5, 64), (64, 5), (64, 64), (63, 65), (100, 130), (200, 1), (1, 200), (129, 191), (300, 64)]
"""[in, out]"""
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = {"random", "constant", "zero", "tiny", "subnormal", "huge", "largest", "mixed", "halves", "sparse"}


def _matrix(kind: str, shape: tuple[int, int], seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    normal = random.standard_normal(shape)
    found: Array = {
        "random": lambda: normal,
        "constant": lambda: np.full(shape, -0.37),
        "zero": lambda: np.where(normal < 0, -0.0, 0.0),
        "tiny": lambda: 1e-20 * normal,
        "subnormal": lambda: 1e-41 * normal,
        "huge": lambda: 1e25 * normal,
        "largest": lambda: np.sign(normal) * np.finfo(np.float32).max,
        "mixed": lambda: 10.0 ** random.uniform(-44, 38, shape) * np.sign(normal),
        # Quotients half-way between two whole numbers.
        "halves": lambda: random.integers(-254, 255, shape) / 2,
        "sparse": lambda: np.where(random.random(shape) < 0.03, normal, 0),
    }[kind]()
    return found.astype(np.float32)


class _Stored:
    """One matrix [in, out], as a checkpoint may have it."""

    def __init__(self, folder: Path, matrix: Floats, dtype: str, layout: int) -> None:
        # The embeddings of a model lie as [out, in], its other matrices as [in, out].
        name = "wte.weight" if layout == OUTPUTS else "h.0.mlp.c_fc.weight"
        inputs, outputs = matrix.shape
        sizes = {"vocab_size": outputs} if layout == OUTPUTS else {"n_inner": outputs}
        make_model(folder, tokenizer=None, prefix="", n_embd=inputs, n_head=1, n_layer=1, **sizes)
        checkpoint = open_checkpoint(folder)
        tensors = {key: torch.from_numpy(np.array(_floats(checkpoint, key))) for key in checkpoint.tensors}
        lying = torch.from_numpy(matrix.T.copy() if layout == OUTPUTS else matrix)
        save_file({**tensors, name: lying.to(TYPES[dtype]).contiguous()}, folder / "model.safetensors")
        self.tensors: Tensors = open_tensors(open_checkpoint(folder))
        self.source = Source("h.0.mlp.c_fc.weight", name, inputs, outputs, layout)
        stored = as_float32(*self.tensors.read(name))
        self.values = np.ascontiguousarray(stored.T if layout == OUTPUTS else stored)
        """[in, out], as it was rounded to be stored."""

    def packed(self, kind: Kind, threads: int = 1) -> Array:
        return np.concatenate([*pack(self.tensors, self.source, kind, threads)])


def _floats(checkpoint: object, name: str) -> Floats:
    return as_float32(*open_tensors(checkpoint).read(name))  # type: ignore[arg-type]


def _unpanel(values: Array, outputs: int) -> Array:
    """[panels, in, 64] -> [in, out]; the columns that fill up the last panel are zeros."""
    flat = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
    assert not flat[:, outputs:].any()
    return flat[:, :outputs]


def _numbers(packed: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.int64], Floats]:
    """[panels, groups, bytes] -> numbers [panels, groups, 64 in, 64 out], scales [panels, groups, 64 out]"""
    values, scales = packed[..., : -2 * PANEL], packed[..., -2 * PANEL :]
    lead = packed.shape[:2]
    if bits == 4:
        # A byte holds an input of the first half of its group, and one of the second.
        values = np.concatenate([values & 15, values >> 4], axis=-1)
    # Four inputs stand together for each output.
    quads = values.reshape(*lead, GROUP // 4, PANEL, 4).transpose(0, 1, 2, 4, 3)
    numbers = quads.reshape(*lead, GROUP, PANEL).astype(np.int64) - (128 if bits == 8 else 8)
    wide = (np.ascontiguousarray(scales).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return numbers, wide


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_numbers_of_numpy(tmp_path: Path, kind: str, bits: int) -> None:
    """The same numbers and the same scales, to the last bit."""
    precision: Kind = "int8" if bits == 8 else "int4"
    for seed, (shape, layout) in enumerate(itertools.product(SHAPES, (INPUTS, OUTPUTS))):
        stored = _Stored(tmp_path / str(seed), _matrix(kind, shape, seed), "F32", layout)
        numbers, scales = quantise(np.ascontiguousarray(stored.values.T), 8 if bits == 8 else 4)
        found, steps = _numbers(stored.packed(precision), bits)
        panels, groups = found.shape[:2]
        assert (panels, groups) == (-(-shape[1] // PANEL), -(-shape[0] // GROUP))
        flat = found.transpose(1, 2, 0, 3).reshape(groups * GROUP, panels * PANEL)
        assert np.array_equal(flat[: shape[0], : shape[1]], numbers.T), (shape, layout)
        assert not flat[shape[0] :, : shape[1]].any(), "inputs that are not there"
        expected = scales.view(np.uint32)
        assert np.array_equal(_columns(steps)[:, : shape[1]].view(np.uint32), expected.T), (shape, layout)
        # Outputs that are not there: whatever their scale, their numbers are zeros.
        assert not flat[:, shape[1] :].any()


@pytest.mark.parametrize("layout", [INPUTS, OUTPUTS])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_in_parts(tmp_path: Path, precision: Kind, layout: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is converted a few panels at a time, and checked so."""
    stored = _Stored(tmp_path, _matrix("random", (100, 300)), "F32", layout)
    whole = stored.packed(precision)
    monkeypatch.setattr(packed_module, "_AT_ONCE", 100 * PANEL * 2)
    parts = [*pack(stored.tensors, stored.source, precision, 2)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.array_equal(np.concatenate(parts), whole)
    largest = float(np.abs(stored.values).max())
    assert check_finite(stored.tensors, stored.source.tensor, tmp_path, release=True) == largest


def _columns(steps: Floats) -> Floats:
    """[panels, groups, 64] -> [groups, out]"""
    return np.ascontiguousarray(steps.transpose(1, 0, 2).reshape(steps.shape[1], -1))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_of_any_type_and_layout(tmp_path: Path, dtype: str, precision: Kind) -> None:
    """Rounded to nearest even as torch does; of 8 and 4 bits, the numbers of what is stored."""
    for layout in (INPUTS, OUTPUTS):
        stored = _Stored(tmp_path / str(layout), _matrix("random", (129, 191)), dtype, layout)
        packed = stored.packed(precision)
        assert packed.shape == packed_shape(stored.source, precision)
        values = torch.from_numpy(stored.values)
        if precision in ("int8", "int4"):
            again = _Stored(tmp_path / f"again {layout}", stored.values, "F32", INPUTS)
            assert np.array_equal(packed, again.packed(precision))
        elif precision == "fp32":
            assert np.array_equal(_unpanel(packed, 191), stored.values)
        else:
            narrow = values.to(torch.float16 if precision == "fp16" else torch.bfloat16)
            expected = narrow.view(torch.int16).numpy().view(np.uint16)
            assert np.array_equal(_unpanel(packed, 191), expected)


@pytest.mark.parametrize(("precision", "narrow"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_every_half_is_rounded_as_by_torch(
    tmp_path: Path, precision: Kind, narrow: torch.dtype, dtype: str
) -> None:
    """All fp16 numbers, those between them and their neighbours; subnormal ones and signed zeros, too."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    values = halves
    if dtype == "F32":
        between = (halves[1:] + halves[:-1]) / 2
        near = [np.nextafter(between, np.float32(side)) for side in (-np.inf, np.inf)]
        values = np.concatenate([halves, between, *near])
        values = values[np.abs(values) <= 65504]
    matrix = np.zeros((-(-len(values) // 128), 128), np.float32)
    matrix.reshape(-1)[: len(values)] = values
    stored = _Stored(tmp_path, matrix, dtype, INPUTS)
    assert np.array_equal(stored.values.view(np.uint32), matrix.view(np.uint32))
    expected = torch.from_numpy(matrix).to(narrow).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(_unpanel(stored.packed(precision), 128), expected)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_any_number_of_threads(tmp_path: Path, precision: Kind) -> None:
    """More of them than panels as well."""
    stored = _Stored(tmp_path, _matrix("random", (70, 200)), "F32", INPUTS)
    expected = stored.packed(precision)
    for threads in (2, 3, 4, 9):
        assert np.array_equal(stored.packed(precision, threads), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_numbers_are_refused(tmp_path: Path, dtype: str, bad: float) -> None:
    for at in ((0, 0), (3, 77), (128, 190)):
        matrix = _matrix("random", (129, 191))
        matrix[at] = bad
        stored = _Stored(tmp_path / str(at), matrix, dtype, INPUTS)
        with pytest.raises(ModelFileError, match=r"h\.0\.mlp\.c_fc\.weight contains NaN or infinity"):
            check_finite(stored.tensors, stored.source.tensor, tmp_path)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_magnitude(tmp_path: Path, dtype: str) -> None:
    stored = _Stored(tmp_path, _matrix("random", (129, 191)), dtype, INPUTS)
    assert check_finite(stored.tensors, stored.source.tensor, tmp_path) == np.abs(stored.values).max()


def test_which_precision_a_matrix_is_kept_in() -> None:
    """fp16 cannot hold every number, and the head of an int4 model stays at 8 bits."""
    layer, head = (Source(name, name, 64, 64, INPUTS) for name in ("h.0.mlp.c_fc.weight", "lm_head.weight"))
    assert kind_of(layer, "fp16", 65504) == "fp16" and kind_of(layer, "fp16", 65505) == "fp32"
    assert kind_of(layer, "bf16", 1e38) == "bf16"
    assert kind_of(layer, "int4", 1) == "int4" and kind_of(head, "int4", 1) == "int8"
