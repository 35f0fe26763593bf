"""How long the user has waited: time since the process started."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED = time.perf_counter()


def process_age() -> float:
    """Seconds since this process started; on systems without /proc, since the package was imported."""
    try:
        # Field 22, counted after the command's name, which may hold spaces and parentheses.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _IMPORTED
