"""How many rows a forward must have, so that no row's bits depend on how many others share it.

The matrix library splits a product's rows among threads, and fewer than 8 in one share take another path, which rounds
differently (measured for MKL on one and two threads, widths 8 to 2,048, depths 12 to 7,168). Functions such as the
sigmoid take 16 numbers at a time, and what is left over goes through other code. A multiple of 8 rows for each thread,
of 16 in all, avoids both.
"""

from __future__ import annotations

import torch

ROWS_PER_THREAD = 8
LEAST = 16


def row_padding(rows: int) -> int:
    """Rows to add to so many."""
    return -rows % max(LEAST, ROWS_PER_THREAD * torch.get_num_threads())
