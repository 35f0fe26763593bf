"""Memory in pages of 2 MiB, for what is read from end to end with every token.

In pages of 4 KiB a quarter of a decode step is spent on finding them (measured on a virtual machine). Linux
joins pages on request (`madvise`, MADV_COLLAPSE, since 6.1); it copies them, which takes as long as some
hundred tokens, and so it is asked little by little, and only by what runs long. Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

HUGE_PAGE = 2 * 2**20
KEPT_BLOCK = 64 * 2**20
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LEAST = 8 * HUGE_PAGE


def on_huge_pages(start: int, size: int) -> None:
    """Ask for huge pages for memory that nothing was written to yet: ``size`` bytes from ``start`` on."""
    first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, (start + size) // HUGE_PAGE * HUGE_PAGE
    if sys.platform == "linux" and last > first:
        _advise()(first, last - first, _MADV_HUGEPAGE)


def _advise() -> Any:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def keep_freed_memory(largest: int = KEPT_BLOCK, at_most: int = KEPT_BLOCK * 4) -> None:
    """Have this process keep freed blocks of up to ``largest`` bytes, ``at_most`` so many in all at the end.

    The next chunk of a prompt, or the next step of a training, asks for the same blocks again; to give them
    back and be given zeroed ones costs a sixth of an int8 prefill. Elsewhere than on Linux's glibc, nothing.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    # Some versions refuse more than 32 MiB.
    if not (mallopt(_M_MMAP_THRESHOLD, largest) or mallopt(_M_MMAP_THRESHOLD, min(largest, 2**25))):
        return
    mallopt(_M_TRIM_THRESHOLD, at_most)
    mallopt(_M_TOP_PAD, at_most // 8)


class HugePages:
    """The large private mappings of this process, to be joined part by part."""

    def __init__(self) -> None:
        self._left: list[tuple[int, int]] | None = None if sys.platform == "linux" else []

    @property
    def done(self) -> bool:
        """Whether nothing is left to join."""
        return self._left == []

    def join(self, at_least: int | None = None) -> None:
        """Join pages of ``at_least`` so many bytes, or all. What the system refuses is left as it is."""
        if self._left is None:
            self._left = _large_mappings()
        if not self._left:
            return
        advise, joined = _advise(), 0
        while self._left and (at_least is None or joined < at_least):
            start, length = self._left.pop()
            if advise(start, length, _MADV_HUGEPAGE) == 0:
                advise(start, length, _MADV_COLLAPSE)
            joined += length


def _large_mappings() -> list[tuple[int, int]]:
    """Start and length of anonymous memory, in parts of whole huge pages."""
    parts = []
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        span, access, _, _, _, *name = line.split()
        if access != "rw-p" or name not in ([], ["[heap]"]):
            continue
        first, last = (int(number, 16) for number in span.split("-"))
        if last - first < _LEAST:
            continue
        first, last = -(-first // HUGE_PAGE) * HUGE_PAGE, last // HUGE_PAGE * HUGE_PAGE
        parts += [(start, min(_LEAST, last - start)) for start in range(first, last, _LEAST)]
    return parts
