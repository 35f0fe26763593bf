"""The threads of the native library: busy machines, forked processes, and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from native_models import (
    bits,
    check_script,
    in_chunks,
    needs_native,
    open_native,
    random_ids,
    random_script,
    whole,
)
from support import make_model

from gpt2cli.core.backend import Floats
from gpt2cli.core.native.backend import NativeBackend
from gpt2cli.core.quantise import Kind
from gpt2cli.errors import Gpt2cliError

pytestmark = needs_native

VOCABULARY, CONTEXT = 700, 300
linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it is read from Linux's /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that every operation has several pieces."""
    return make_model(
        tmp_path_factory.mktemp("model"),
        tokenizer=None,
        std=0.1,
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=192,
        n_head=3,
        n_layer=3,
    )


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return random_ids(random.Random(7), VOCABULARY, CONTEXT)


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    """Other processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _check(model: Path, precision: Kind, threads: int, passes: int) -> None:
    script = random_script(f"pool {precision} {threads}", VOCABULARY, CONTEXT, passes)
    alone = open_native(model, precision)
    expected = [whole(alone, text) for text in script.texts]
    alone.close()
    backend = open_native(model, precision, threads=threads)
    check_script(backend, script, expected, f"{precision}, {threads} threads")
    backend.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_more_threads_than_cores(model: Path, precision: Kind) -> None:
    """Threads that the system puts to sleep in the middle of a piece are overtaken, and write nothing."""
    _check(model, precision, 4 * (os.cpu_count() or 1), 12)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_core_is_busy(model: Path, precision: Kind) -> None:
    with _busy(os.cpu_count() or 1):
        for threads in (2, 8):
            _check(model, precision, threads, 6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_busy_for_long(model: Path, precision: Kind) -> None:
    """Rare interleavings: many passes, more threads than cores, and others that compute."""
    with _busy(2 * (os.cpu_count() or 1)):
        for threads in (2, 3, 5, 8):
            _check(model, precision, threads, 60)


def test_two_models_at_once(model: Path, ids: list[int]) -> None:
    """Each has threads of its own; the interpreter's lock is free while one computes."""
    expected = whole(open_native(model, "fp16"), ids)
    backends = [open_native(model, "fp16", threads=2) for _ in range(3)]
    found: list[Floats] = []

    def run(backend: NativeBackend) -> None:
        found.extend(in_chunks(backend, ids, 29) for _ in range(3))

    runners = [threading.Thread(target=run, args=(backend,)) for backend in backends]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert len(found) == 9
    assert all(np.array_equal(bits(logits), bits(expected)) for logits in found)
    for backend in backends:
        backend.close()


def _in_a_fork(work: Callable[[], bool], seconds: float = 120) -> None:
    """Run ``work`` in a copy of this process, which has to end in time, and well."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("pause_s", [0.0, 0.0003, 0.05])
def test_after_a_fork(model: Path, ids: list[int], pause_s: float) -> None:
    """A copy of the process has one thread and starts others, whether the parent's are awake or sleep."""
    backend = open_native(model, "int8", threads=3)
    expected = bits(whole(backend, ids))

    def right(size: int) -> bool:
        return np.array_equal(bits(in_chunks(backend, ids, size)), expected)

    def work() -> bool:
        good = right(11) and right(CONTEXT) and _threads() == 3
        backend.close()
        return good

    right(50)
    time.sleep(pause_s)
    _in_a_fork(work)
    assert right(11)
    # Also where it was never used before, and where the copy only closes it.
    unused = open_native(model, "int8", threads=3)
    _in_a_fork(lambda: np.array_equal(bits(whole(unused, ids)), expected))
    _in_a_fork(lambda: backend.close() is None)
    assert right(7)
    for each in (unused, backend):
        each.close()


def _threads() -> int:
    """Those of this process, or the three that are expected where there is no way to count them."""
    tasks = Path("/proc/self/task")
    return len([*tasks.iterdir()]) if tasks.exists() else 3


def _mapped_bytes() -> int:
    """The address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@linux_only
@pytest.mark.parametrize("closed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_nothing_is_left_behind(model: Path, ids: list[int], closed: bool) -> None:
    """Neither threads nor memory, whether a model is closed or only let go."""

    def use() -> None:
        backend = open_native(model, "int8", threads=4)
        in_chunks(backend, ids[:20], 7)
        slots = [backend.new_slot() for _ in range(5)]
        backend.free_slot(slots[0])
        if closed:
            backend.close()
            backend.close()

    for _ in range(5):
        use()
    gc.collect()
    threads, mapped = _threads(), _mapped_bytes()
    for _ in range(60):
        use()
    gc.collect()
    assert _threads() == threads
    # One model of these takes 20 MB, most of it never touched; an allocator may keep some of what it had.
    assert _mapped_bytes() - mapped < 40 * 2**20


@linux_only
def test_slots_are_used_again(model: Path, ids: list[int]) -> None:
    """The memory of a text that ended goes back to the system, and its slot to the next text."""
    backend = open_native(model, "fp32")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    whole(backend, ids)
    before = resident()
    seen = set()
    for _ in range(200):
        slot = backend.new_slot()
        seen.add(slot)
        backend.free_slot(slot)
        whole(backend, ids[:100])
    assert len(seen) == 1
    assert resident() - before < 8 * 2**20
    backend.close()


def test_there_is_an_end_of_slots(model: Path) -> None:
    """Thousands at once; one more is refused, and there is room again when one is free."""
    backend = open_native(model, "int8")
    slots = []
    with pytest.raises(Gpt2cliError, match="not enough memory for another text"):
        for _ in range(100_000):
            slots.append(backend.new_slot())
    assert len(slots) > 1000
    backend.free_slot(slots[17])
    assert backend.new_slot() == slots[17]
    backend.close()
