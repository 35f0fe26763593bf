"""Joining pages: the content stays, and whatever the system says, nothing breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2cli.core import pages as pages_module
from gpt2cli.core.pages import HUGE_PAGE, HugePages


def test_the_content_stays() -> None:
    tensor = torch.arange(10_000_000)
    pages = HugePages()
    pages.join(HUGE_PAGE)
    pages.join()
    assert pages.done
    assert torch.equal(tensor, torch.arange(10_000_000))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_parts_are_whole_pages_within_a_mapping() -> None:
    tensor = torch.ones(20_000_000)
    parts = pages_module._large_mappings()
    assert parts and all(start % HUGE_PAGE == 0 and length % HUGE_PAGE == 0 for start, length in parts)
    inside = [start for start, length in parts if start <= tensor.data_ptr() + 2**24 < start + length]
    assert len(inside) == 1


def test_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(40_000_000)
    pages, steps = HugePages(), 0
    while not pages.done and steps < 10_000:
        pages.join(16 * HUGE_PAGE)
        steps += 1
    assert pages.done and (sys.platform != "linux" or steps > 1)
    assert float(tensor.sum()) == 40_000_000


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    pages = HugePages()
    pages.join()
    assert pages.done


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_freed_blocks_are_kept() -> None:
    """What is freed and asked for again is not taken from the system each time."""
    code = (
        "import resource, torch; from gpt2cli.core.pages import keep_freed_memory; keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(30): torch.ones(2**22)\n"
        "before = faults()\n"
        "for _ in range(10): torch.ones(2**22)\n"
        "print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Each has 4,096 pages.
    assert int(done.stdout) < 5000
