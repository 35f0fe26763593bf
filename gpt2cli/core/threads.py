"""How many threads compute, watched while they do.

The threads of a product wait for each other at its end. Where another process holds a core, all wait for
the one that has none, and a machine with one busy core of two computes at a quarter of its speed. With
one thread fewer nobody waits.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TRIAL_STEPS = 4
_SLOW = 1.3
_COLLAPSED = 1.8
_EARLY_STEPS = 3 * TRIAL_STEPS
_CROWDED_SHARE = 0.93
_FASTER = 0.93
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 4.0
_LONGEST_WITHOUT_TRIAL_S = 16.0
_LOOKS = 6
_BETWEEN_LOOKS_S = 0.003
_LOOK_AGAIN_S = 0.1
_LOAD = Path("/proc/loadavg")
_OWN_THREADS = Path("/proc/self/task")


def physical_cores() -> int:
    """The cores this process may use, two threads of one core counted once; at least 1."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota() or len(cores)))


def default_threads() -> int:
    """The physical cores, unless the user's ``OMP_NUM_THREADS`` says otherwise."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else physical_cores()


def _quota() -> int | None:
    """The CPUs that a container's limit allows, rounded up; None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def _whole_machine() -> bool:
    """Whether this process has all processors that the system counts; a container's are a part of them."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return len(usable) == os.cpu_count() and _quota() is None and not os.environ.get("OMP_NUM_THREADS")


def busy_elsewhere(looks: int = _LOOKS) -> int:
    """Threads of other processes that run or wait for a processor; 0 where the system (not Linux) is silent.

    Of some looks the least: what comes and goes within 15 ms is no reason to compute more slowly.
    """
    least: int | None = None
    for _ in range(looks):
        if least is not None:
            time.sleep(_BETWEEN_LOOKS_S)
        try:
            running = int(_LOAD.read_text().split()[3].partition("/")[0])
            if running <= 1:
                return 0
            states = [path.read_text().rpartition(")")[2].split()[0] for path in _OWN_THREADS.glob("*/stat")]
        except (OSError, ValueError, IndexError):
            return 0
        others = max(0, running - states.count("R"))
        least = others if least is None else min(least, others)
        if least == 0:
            break
    return least or 0


class Governor:
    """Chooses between ``most`` threads and one fewer, half and one, by the time that decode steps take.

    Fewer are taken at the beginning where other processes hold processors, and tried where the threads do
    not get them or steps become slow; more again from time to time. A trial is a few steps; what was faster
    stays. With ``most`` 1 it does nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._levels = sorted({most, max(1, most - 1), max(1, most // 2), 1}, reverse=True)
        self._level = 0
        self._before = 0
        self._recent: deque[float] = deque(maxlen=TRIAL_STEPS)
        self._shares: deque[float] = deque(maxlen=TRIAL_STEPS)
        self._rival: float | None = None
        self._fastest = float("inf")
        self._since = 0.0
        self._wait = _FIRST_WAIT_S
        self._steps = 0

    @property
    def threads(self) -> int:
        """How many threads compute now."""
        return self._levels[self._level]

    def begin(self) -> None:
        """Other steps begin: of more rows, or of a longer text, which take longer for that reason."""
        if self._rival is not None:
            self._level, self._rival = self._before, None
        self._fastest = float("inf")
        fit = self._fit()
        level = next(n for n, threads in enumerate(self._levels) if threads <= fit)
        if level > self._level:
            self._wait = _LOOK_AGAIN_S
        self._move(max(level, self._level))

    def _fit(self, looks: int = _LOOKS) -> int:
        """How many threads find a processor now, where that can be told."""
        if self.most == 1 or not _whole_machine():
            return self.most
        return max(1, min(self.most, (os.cpu_count() or 1) - busy_elsewhere(looks)))

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """While steps are taken. Then all threads are there again, for whatever the process computes."""
        self.begin()
        try:
            yield
        finally:
            torch.set_num_threads(self.most)

    @contextmanager
    def many_rows(self) -> Iterator[None]:
        """While a whole prompt is computed: as many threads as there are processors that nobody else uses.

        There are no steps before it to judge by, and a product that waits for a thread takes ten times as
        long (32 tokens in int8: 0.26 s on two threads of which one waits, 0.03 s on one).
        """
        before, fit = torch.get_num_threads(), self._fit()
        if fit != before:
            torch.set_num_threads(fit)
        try:
            yield
        finally:
            if fit != before:
                torch.set_num_threads(before)

    def step(self, seconds: float, share: float = 1.0) -> None:
        """Take in how long a decode step took, and choose for the next.

        ``share`` is the processor time of all threads together over that: below 1 even a single thread had to
        wait for a processor.
        """
        if len(self._levels) == 1:
            return
        self._steps += 1
        self._since += seconds
        self._recent.append(seconds)
        self._shares.append(share)
        if len(self._recent) < TRIAL_STEPS:
            return
        # The mean: on a busy machine most steps are quick, and some take ten times as long.
        usual = statistics.fmean(self._recent)
        if self._rival is not None:
            self._judge(usual)
        elif self._level == 0:
            slower = usual / self._fastest
            self._fastest = min(self._fastest, usual)
            wait = 0.0 if slower > _COLLAPSED else self._wait
            crowded = self._steps <= _EARLY_STEPS and statistics.fmean(self._shares) < _CROWDED_SHARE
            if (slower > _SLOW and self._since > wait) or crowded:
                self._try(1, usual)
        elif self._since > self._wait:
            if self._fit(looks=1) < self._levels[self._level - 1] and self._since < _LONGEST_WITHOUT_TRIAL_S:
                self._wait = self._since + _LOOK_AGAIN_S
            else:
                self._try(self._level - 1, usual)

    def _try(self, level: int, usual: float) -> None:
        self._before, self._rival = self._level, usual
        self._move(level)

    def _judge(self, usual: float) -> None:
        """The end of a trial: stay if it was faster, else go back and wait longer for the next."""
        assert self._rival is not None
        better = usual < _FASTER * self._rival
        self._rival, down = None, self._level > self._before
        if better:
            self._wait = _FIRST_WAIT_S
            if down and self._level + 1 < len(self._levels):
                self._try(self._level + 1, usual)
            return
        self._wait = min(2 * self._wait, _LONGEST_WAIT_S)
        self._move(self._before)

    def _move(self, level: int) -> None:
        if level != self._level:
            self._since = 0.0
        self._level = level
        self._recent.clear()
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
