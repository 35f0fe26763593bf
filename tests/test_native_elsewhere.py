"""The library where Python does not reach: under the sanitizers, and on another processor, which qemu plays.

`native_driver.c` runs models and scripts from a file, and prints the bits that the library gives here, too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from native_driver import ARM_LIBRARIES, build_driver, write_cases
from native_models import (
    PRECISIONS,
    bits,
    instruction_sets,
    needs_native,
    open_native,
    play,
    random_model,
    random_script,
)
from support import series

from gpt2cli.checkpoint import open_checkpoint
from gpt2cli.core.native.library import PLACE

pytestmark = [needs_native, pytest.mark.slow]

SANITIZERS = (
    "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    # A debugger's view of the variables costs two thirds of the whole build.
    " -fno-var-tracking-assignments"
)
CASES, AT_ONCE = series(1000, 100), 25
ARM = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
TIMEOUT_S = 3600


def _cases(folder: Path, numbers: Sequence[int], passes: int) -> tuple[Path, bytes]:
    """A file for the driver with one model for each number; the bits that the library gives in Python."""
    cases, expected = [], []
    for number in numbers:
        checkpoint = open_checkpoint(random_model(folder / str(number), number))
        config, precision = checkpoint.config, PRECISIONS[number // 7 % len(PRECISIONS)]
        script = random_script(number, config.vocab_size, config.n_positions, passes)
        cases.append((checkpoint, precision, script, number % 2 == 0))
        backend = open_native(checkpoint.directory, precision)
        expected += [bits(logits).tobytes() for _, logits in play(backend, script)]
        backend.close()
    path = folder / "cases"
    write_cases(path, cases)
    return path, b"".join(expected)


def _run(command: Sequence[str | Path], expected: bytes) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-5000:]
    assert done.stdout == expected


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver and the library, built to stop at what C does not define."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no gcc here with its sanitizers")
    return build_driver(tmp_path_factory.mktemp("sanitized"), [compiler], SANITIZERS, kind="Debug")


@pytest.mark.parametrize("part", range(CASES // AT_ONCE))
def test_sanitizers(sanitized: Path, tmp_path: Path, part: int) -> None:
    """No access beside an array, no leak, nothing undefined; by all instruction sets, in 1 to 3 threads."""
    numbers = range(1000 + part * AT_ONCE, 1000 + (part + 1) * AT_ONCE)
    path, expected = _cases(tmp_path, numbers, passes=4)
    sets = instruction_sets()
    _run([sanitized, path, sets[part % len(sets)], str(1 + part % 3)], expected)


PYTHON = """
import sys
from pathlib import Path
from native_models import PRECISIONS, bits, open_native, play, random_script
for number in map(int, sys.argv[2:]):
    precision = PRECISIONS[number // 7 % len(PRECISIONS)]
    backend = open_native(Path(sys.argv[1]) / str(number), precision, threads=2)
    config = backend.config
    for _, logits in play(backend, random_script(number, config.vocab_size, config.n_positions, 4)):
        sys.stdout.buffer.write(bits(logits).tobytes())
    backend.close()
"""


def test_sanitizers_below_python(sanitized: Path, tmp_path: Path) -> None:
    """What Python hands over is as large as the library takes it to be: mapped files, vectors, logits."""
    numbers = range(3000, 3040)
    _, expected = _cases(tmp_path, numbers, passes=4)
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime.stdout.strip(),
        # The interpreter frees little at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        PLACE: str(sanitized.with_name("_gpt2.so")),
    }
    command = [sys.executable, "-c", PYTHON, str(tmp_path), *map(str, numbers)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-5000:]
    assert done.stdout == expected


def _arm_compiler() -> list[str] | None:
    if compiler := shutil.which("aarch64-linux-gnu-gcc"):
        return [compiler]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu"]
    return None


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command that runs the driver for aarch64 on this machine."""
    qemu, compiler = shutil.which("qemu-aarch64"), _arm_compiler()
    if qemu is None:
        pytest.skip("there is no qemu-aarch64 (Debian: qemu-user)")
    if compiler is None or not ARM_LIBRARIES.exists():
        pytest.skip("there is no compiler for aarch64 (Debian: gcc-aarch64-linux-gnu; or ziglang)")
    driver = build_driver(tmp_path_factory.mktemp("arm"), compiler, system=ARM)
    return [qemu, "-L", ARM_LIBRARIES, driver]


@pytest.mark.parametrize("instructions", ["neon", "portable"])
@pytest.mark.parametrize("part", range(7))
def test_on_arm(arm: list[str | Path], tmp_path: Path, part: int, instructions: str) -> None:
    """The same bits on aarch64, in all precisions and head widths; by its own conversion of matrices."""
    # Their head widths go round by seven, their contexts by five: the longest are left out.
    numbers = [n for n in range(4000 + 35 * part, 4035 + 35 * part) if n % 5 != 0][::2]
    path, expected = _cases(tmp_path, numbers, passes=3)
    _run([*arm, path, instructions, "2"], expected)
