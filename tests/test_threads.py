"""The choice of threads, on machines whose steps take what the test says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gpt2cli.core import threads as threads_module
from gpt2cli.core.threads import Governor, busy_elsewhere, default_threads, physical_cores


@pytest.fixture(autouse=True)
def _quiet_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: 0)
    monkeypatch.setattr(threads_module, "_whole_machine", lambda: True)
    yield
    torch.set_num_threads(before)


def _run(governor: Governor, steps: int, took: Callable[[int], float]) -> list[int]:
    """The threads of each step on a machine where a step with n threads takes ``took(n)`` seconds."""
    used = []
    for _ in range(steps):
        used.append(governor.threads)
        governor.step(took(governor.threads))
    return used


def _quiet(threads: int) -> float:
    return 0.016 / threads**0.7


def test_all_threads_on_a_quiet_machine() -> None:
    used = _run(Governor(2), 400, _quiet)
    assert used.count(1) == 0


def test_a_machine_that_is_busy_from_the_start() -> None:
    """No step was ever quick; that the threads do not get the processors tells."""
    governor, used = Governor(2), []
    for _ in range(200):
        used.append(governor.threads)
        governor.step(0.05 if governor.threads == 2 else 0.016, share=0.8)
    assert used[:10].count(1) > 0 and used.count(1) > 150


def test_fewer_while_the_machine_is_busy_and_all_again_after() -> None:
    governor = Governor(2)
    _run(governor, 100, _quiet)
    busy = _run(governor, 300, lambda n: 0.05 if n == 2 else 0.016)
    assert busy.count(1) > 240
    after = _run(governor, 600, _quiet)
    assert after[-1] == 2 and after[300:].count(2) > 270


def test_mostly_quick_steps_with_some_very_slow_ones() -> None:
    """What a busy core looks like: most steps find both cores free."""
    governor, number = Governor(2), iter(range(10**6))
    _run(governor, 50, _quiet)
    used = _run(governor, 300, lambda n: 0.016 if n == 1 else 0.01 if next(number) % 3 else 0.12)
    assert used.count(1) > 200


def test_many_cores_go_down_step_by_step() -> None:
    governor = Governor(8)
    _run(governor, 50, _quiet)
    used = _run(governor, 200, lambda n: 0.5 if n == 8 else 0.01 + n / 1000)
    assert set(used[100:]) <= {7, 4, 1} or min(used) < 8


def test_other_steps_are_not_taken_for_a_busy_machine() -> None:
    """Eight sequences take longer than one."""
    governor = Governor(2)
    _run(governor, 100, _quiet)
    governor.begin()
    assert _run(governor, 100, lambda n: 3 * _quiet(n)).count(1) == 0


def test_one_thread_is_left_alone() -> None:
    assert set(_run(Governor(1), 50, lambda _: 1.0)) == {1}


def test_the_threads_are_those_of_torch() -> None:
    governor = Governor(2)
    _run(governor, 50, _quiet)
    for _ in range(40):
        governor.step(0.05 if governor.threads == 2 else 0.016)
        assert governor.threads == 2 or torch.get_num_threads() == 1
    assert governor.threads == 1


def test_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= physical_cores() <= 4096
    monkeypatch.setattr(threads_module, "_quota", lambda: 1)
    assert physical_cores() == 1


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    for nonsense in ("", "0", "many", "2,1"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert default_threads() == physical_cores()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_what_other_processes_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy process counts; this one does not."""
    monkeypatch.undo()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.2)
            assert busy_elsewhere() >= 1
        finally:
            other.kill()
    (tmp_path / "loadavg").write_text("0.50 0.40 0.30 0/80 4711")
    monkeypatch.setattr(threads_module, "_LOAD", tmp_path / "loadavg")
    assert busy_elsewhere() == 0


@pytest.mark.parametrize("said", ["", "1 2 3", "0.1 0.2 0.3 nonsense 5"])
def test_a_system_that_does_not_say(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "loadavg").write_text(said)
    for path in (tmp_path / "loadavg", tmp_path / "absent"):
        monkeypatch.setattr(threads_module, "_LOAD", path)
        assert busy_elsewhere() == 0


@pytest.mark.parametrize(("others", "threads"), [(0, 8), (2, 6), (7, 1), (50, 1)])
def test_a_prompt_takes_the_processors_that_are_free(
    others: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: others)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    before = torch.get_num_threads()
    with Governor(8).many_rows():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


def test_after_the_steps_all_threads_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: 2)
    with Governor(3).decoding():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_part_of_a_machine_is_not_judged_by_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the system speaks of all processors and of all that runs on them."""
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: 100)
    monkeypatch.setattr(threads_module, "_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for count, fit in ((4, 1), (64, 4)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert Governor(4)._fit() == fit
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads_module, "_quota", lambda: 4)
    assert Governor(4)._fit() == 4
    monkeypatch.setattr(threads_module, "_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Governor(4)._fit() == 4


def test_steps_begin_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: 1)
    governor = Governor(8)
    governor.begin()
    assert governor.threads == 7
    # As long as there is no room, more are not tried every second.
    used = _run(governor, 600, lambda _: 0.01)
    assert set(used) == {7}
    monkeypatch.setattr(threads_module, "busy_elsewhere", lambda *_: 0)
    assert 8 in _run(governor, 200, lambda n: 0.1 / n)
