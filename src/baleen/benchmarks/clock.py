"""Time and memory of this process: the best of a few calls, and the peak of its resident size above a start.

The kernel keeps the peak (`VmHWM`) since the process began; writing to `clear_refs` sets it back to the present size,
so that what building the weights took for a moment is not counted. What the allocator kept of that moment is given back
first: the measurement would live in it and look smaller than it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

SHORT, LONG = 1.0, 20.0
"""Seconds: what is shorter is measured three times, what is longer once."""


def best_of(call: Callable[[], object]) -> list[float]:
    """The seconds of each call: three below a second, one above twenty, else two. The best is their minimum."""
    seconds = [timed(call)]
    repeats = 3 if seconds[0] < SHORT else 1 if seconds[0] > LONG else 2
    return seconds + [timed(call) for _ in range(repeats - 1)]


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class PeakMemory:
    """The peak of the resident size from here on; zeros on systems without `/proc`."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # not every C library can
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # the peak since the start then stands, which can only be larger
            Path("/proc/self/clear_refs").write_text("5")
        self.start = _status("VmRSS")

    def read(self) -> dict[str, int]:
        """`memory_bytes` above the start and `process_bytes` in all."""
        peak = max(_status("VmHWM"), _status("VmRSS"))
        return {"memory_bytes": max(0, peak - self.start), "process_bytes": peak}


def _status(name: str) -> int:
    file = Path("/proc/self/status")
    if not file.is_file():
        return 0
    for line in file.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0
