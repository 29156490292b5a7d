"""How this process uses the machine: threads, and memory that is kept instead of given back after every step.

Training allocates the same large tensors again and again. glibc returns each of them to the kernel and pays for zeroed
pages on the next step; raised thresholds keep them (docs/experiments.md has the timings).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30


def prepare_machine(threads: int = 0) -> None:
    """Sets torch's threads (0 leaves them) and, on Linux, keeps freed memory in the process."""
    if threads:
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6")
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
            libc.mallopt(M_TRIM_THRESHOLD, 2 * KEEP_BYTES - 1)
