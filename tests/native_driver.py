"""Builds the library and `native_driver.c` for another processor or with sanitizers; writes what it runs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from native_models import Copy, Free, New, Pass, Script, Step
from support import REPOSITORY

from gpt2cli.checkpoint import Checkpoint, expected_shapes
from gpt2cli.core.arrays import as_float32
from gpt2cli.core.native.backend import _in_place, cache_type
from gpt2cli.core.native.library import ACTIVATIONS, TYPES
from gpt2cli.core.native.packed import KINDS, Source, check_finite, kind_of, sources
from gpt2cli.core.quantise import Kind
from gpt2cli.core.tensors import Tensors, open_tensors

NATIVE = REPOSITORY / "gpt2cli" / "core" / "native"
DRIVER = REPOSITORY / "tests" / "native_driver.c"
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")
"""Where Debian's libc6-arm64-cross puts what a program for aarch64 loads."""


def build_driver(
    folder: Path,
    compiler: Sequence[str],
    flags: str = "",
    *,
    kind: str = "Release",
    system: Sequence[str] = (),
) -> Path:
    """Build the library by its own CMakeLists.txt, and the driver beside it; the driver.

    ``kind`` is CMake's type of a build, ``system`` its definitions of another processor. The test is skipped
    where there is no CMake.
    """
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None or not (NATIVE / "CMakeLists.txt").exists():
        pytest.skip("there is no CMake, or there are no sources")
    given = [f"-DCMAKE_C_COMPILER={';'.join(compiler)}", f"-DCMAKE_C_FLAGS={flags}", *system]
    _run([cmake, "-S", str(NATIVE), "-B", str(folder), f"-DCMAKE_BUILD_TYPE={kind}", *given])
    _run([cmake, "--build", str(folder), "--parallel", "2"])
    driver = folder / "driver"
    # The library is found beside the driver.
    linked = [str(folder / "_gpt2.so"), f"-Wl,-rpath,{folder}", "-o", str(driver)]
    _run([*compiler, "-std=c11", "-g", *flags.split(), f"-I{NATIVE / 'src'}", str(DRIVER), *linked])
    return driver


def _run(command: Sequence[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CFLAGS", "LDFLAGS")}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def write_cases(path: Path, cases: Sequence[tuple[Checkpoint, Kind, Script, bool]]) -> None:
    """Models, their precision, and what is asked of them; True to multiply in place what can be."""
    with path.open("wb") as file:
        _whole(file, len(cases))
        for checkpoint, precision, script, in_place in cases:
            _Model(file, checkpoint, precision, in_place).write()
            _whole(file, len(script.steps))
            for step in script.steps:
                _write_step(file, step)


def _whole(file: IO[bytes], *numbers: int) -> None:
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))


def _write_step(file: IO[bytes], step: Step) -> None:
    match step:
        case New(slot):
            _whole(file, 0, slot)
        case Free(slot):
            _whole(file, 1, slot)
        case Copy(source, target, tokens):
            _whole(file, 2, source, target, tokens)
        case Pass(parts, wanted, _):
            tokens = [token for _, _, ids in parts for token in ids]
            slots = [slot for slot, _, ids in parts for _ in ids]
            positions = [start + at for _, start, ids in parts for at in range(len(ids))]
            _whole(file, 3, len(tokens), len(wanted), *tokens, *slots, *positions, *wanted)


class _Model:
    """Writes a model as the driver reads it."""

    def __init__(self, file: IO[bytes], checkpoint: Checkpoint, precision: Kind, in_place: bool) -> None:
        self.file, self.config, self.precision = file, checkpoint.config, precision
        self.in_place, self.directory = in_place, checkpoint.directory
        self.tensors: Tensors = open_tensors(checkpoint)

    def write(self) -> None:
        config = self.config
        tables = [self.tensors.read(f"{name}.weight") for name in ("wte", "wpe")]
        _whole(
            self.file,
            *(config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head),
            *(config.n_inner, ACTIVATIONS.index(config.activation_function)),
            cache_type(config, self.precision),
            *(TYPES[dtype] for _, dtype in tables),
        )
        self._floats(config.layer_norm_epsilon)
        for array, _ in tables:
            self.file.write(array.tobytes())
        self._vector("ln_f.weight")
        self._vector("ln_f.bias")
        found = {s.name: s for s in sources(self.tensors, expected_shapes(config), config.n_layer)}
        for n in range(config.n_layer):
            for norm in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
                self._vector(f"h.{n}.{norm}")
            for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
                self._matrix(found[f"h.{n}.{part}.weight"])
                self._vector(f"h.{n}.{part}.bias")
            self._floats(config.attention_scale(n))
        self._matrix(found["lm_head.weight"])

    def _floats(self, *numbers: float) -> None:
        self.file.write(np.array(numbers, "<f4").tobytes())

    def _vector(self, name: str) -> None:
        self.file.write(as_float32(*self.tensors.read(name)).tobytes())

    def _matrix(self, source: Source) -> None:
        array, dtype = self.tensors.read(source.tensor)
        kept = -1
        if not _in_place(source, self.tensors, self.precision, True, not self.in_place):
            largest = check_finite(self.tensors, source.tensor, self.directory)
            kept = KINDS[kind_of(source, self.precision, largest)]
        _whole(self.file, TYPES[dtype], source.layout, kept, source.inputs, source.outputs)
        self.file.write(array.tobytes())
