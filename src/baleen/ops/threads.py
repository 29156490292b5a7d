"""Shares the rows of a loop among threads: numpy and compiled loops release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

WORTH_THREADS = 1 << 25
"""Multiplications from which on it pays."""


def in_threads(task: Callable[[slice], None], rows: int, work: int) -> None:
    """Calls `task` with slices that make up the rows, in torch's number of threads where the work is worth it."""
    threads = torch.get_num_threads() if work >= WORTH_THREADS else 1
    if threads == 1:
        task(slice(0, rows))
        return
    bounds = [rows * share // threads for share in range(threads + 1)]
    for _ in _threads(threads).map(task, [slice(*pair) for pair in pairwise(bounds) if pair[0] < pair[1]]):
        pass


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="baleen")
