"""Products whose rows do not depend on how many others share the call.

The matrix library splits a product's rows among threads, and fewer than 8 in one share take another path, which rounds
differently. With 8 for each thread a row's bits are always the same (measured for MKL on one and two threads, widths 8
to 2,048, depths 16 to 7,168).
"""

from __future__ import annotations

import torch

ROWS_PER_THREAD = 8


def least_rows() -> int:
    """Rows that a product must have at least."""
    return ROWS_PER_THREAD * torch.get_num_threads()
