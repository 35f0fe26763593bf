"""Freed memory is kept where the system can be told to."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_freed_blocks_are_kept() -> None:
    """What is freed and asked for again is not taken from the system each time."""
    code = (
        "import resource, torch; from gpt2cli.train.memory import keep_freed_memory; keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(30): torch.ones(2**22)\n"
        "before = faults()\n"
        "for _ in range(10): torch.ones(2**22)\n"
        "print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Each has 4,096 pages.
    assert int(done.stdout) < 5000
