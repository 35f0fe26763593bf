"""The machine: its name, what else runs on it, and a core kept busy on purpose."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2cli.bench.report import Report
from gpt2cli.core.cores import physical_cores

SETTLE_S = 0.5


def describe(device: str, threads: int, libraries: tuple[str, ...]) -> dict[str, Any]:
    """What the figures depend on; ``libraries`` with their versions, and torch where it is imported."""
    if "torch" in sys.modules or device == "cuda":
        libraries = ("torch", *libraries)
    return {
        "processor": _processor(),
        "cores": physical_cores(),
        "threads": threads,
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in dict.fromkeys(libraries)},
    }


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextmanager
def others_watched(report: Report) -> Iterator[None]:
    """Note in ``report`` how many cores were used meanwhile by processes that are not ours."""
    before, own, started = _busy_seconds(), _own_seconds(), time.perf_counter()
    yield
    after = _busy_seconds()
    if before is not None and after is not None:
        others = (after - before) - (_own_seconds() - own)
        report.others = max(0.0, others / (time.perf_counter() - started))


def _own_seconds() -> float:
    """CPU seconds of this process, and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """CPU seconds of all processes since the start of the machine, on the CPUs this one may use."""
    try:
        usable = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        total = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *numbers = line.split()
            if name in usable:
                user, nice, system, _, _, irq, softirq, *_ = map(int, numbers)
                total += user + nice + system + irq + softirq
        return total / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy by a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        process.kill()
        process.wait()
