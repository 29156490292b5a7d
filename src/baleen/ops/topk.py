"""The k best of each row under one tie rule: the higher score first, then the LOWER position.

`torch.topk` breaks ties differently for rows of different length, and takes most of a prefill's selection time on a
CPU. Here a row is partitioned around its k-th value; when the value behind it is smaller, whatever is not smaller than
the k-th is the answer, already in order. Long rows go through one round of a tournament first: their k best lie in the
k groups with the best winners. A row whose k-th value is tied is done again by the rule itself.
"""

# R = rows, L = scores per row, K = how many are taken, G = groups

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.ops.threads import in_threads

GROUP = 16
"""Scores per group of the tournament."""

PARTITION_COST = 256
"""Multiplications that partitioning one score is worth."""


def topk_positions(scores: Tensor, topk: int) -> Tensor:
    """Positions [R, topk] int32, ascending, of the best of scores [R, L], L > topk; -inf is never taken, and -1 stands
    behind where a row has fewer. Equal to `topk_positions_by_rule` on any device, ties included."""
    if scores.device.type == "cpu":
        return _on_cpu(scores, topk)
    values, positions = scores.topk(topk + 1, dim=-1)
    selected = positions[:, :topk].sort(-1).values.int()
    tied = values[:, topk - 1] == values[:, topk]
    if bool(tied.any()):
        selected[tied] = topk_positions_by_rule(scores[tied], topk)
    return selected


def topk_positions_by_rule(scores: Tensor, topk: int) -> Tensor:
    """The same as the rule states it: what lies above the k-th value, then the lowest positions that equal it."""
    threshold = scores.topk(topk, dim=-1).values[:, -1:]
    above, equal = scores > threshold, (scores == threshold) & (scores > -torch.inf)
    chosen = above | (equal & (equal.cumsum(-1) <= topk - above.sum(-1, keepdim=True)))
    place = torch.where(chosen, chosen.cumsum(-1) - 1, topk)
    positions = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device).expand_as(place)
    found = torch.full((scores.shape[0], topk + 1), -1, dtype=torch.int32, device=scores.device)
    return found.scatter_(-1, place, positions)[:, :topk]


def _on_cpu(scores: Tensor, topk: int) -> Tensor:
    selected = torch.empty(scores.shape[0], topk, dtype=torch.int32)
    tied = np.zeros(scores.shape[0], dtype=bool)
    winners = None
    stride = scores.shape[-1] // GROUP
    if stride > 2 * topk:
        # Group j holds the positions j, j + stride, j + 2 stride...; the surplus at the end stands apart.
        winners = scores[:, : stride * GROUP].unflatten(-1, (GROUP, stride)).amax(1).numpy()
    values, out = scores.numpy(), selected.numpy()

    def task(part: slice) -> None:
        if winners is None:
            out[part], tied[part] = _partition(values[part], topk)
        else:
            out[part], tied[part] = _tournament(values[part], winners[part], topk)

    in_threads(task, len(values), values.size * PARTITION_COST)
    if tied.any():
        rows = torch.from_numpy(tied.nonzero()[0])
        selected[rows] = topk_positions_by_rule(scores[rows], topk)
    return selected


def _partition(values: NDArray, topk: int) -> tuple[NDArray, NDArray]:
    """Positions [R, topk] of the best, ascending, and which rows are tied at the k-th value (theirs are not valid)."""
    count, length = values.shape
    # Asked for one place only, numpy partitions with vector instructions, ten times faster.
    ordered = np.partition(values, length - topk - 1, axis=-1)
    least, below = ordered[:, length - topk :].min(axis=-1), ordered[:, length - topk - 1]
    tied = least == below
    chosen = values >= least[:, None]
    if tied.any():
        chosen[tied] = np.arange(length) < topk  # as many as the others have; the caller does these rows again
    positions = np.flatnonzero(chosen).reshape(count, topk)
    positions -= np.arange(count)[:, None] * length
    return positions, tied


def _tournament(values: NDArray, winners: NDArray, topk: int) -> tuple[NDArray, NDArray]:
    """The same for long rows, of which winners [R, G] hold each group's best."""
    count, stride = winners.shape
    groups, tied_groups = _partition(winners, topk)
    surplus = values[:, stride * GROUP :]
    candidates = np.empty((count, GROUP * topk + surplus.shape[1]), dtype=values.dtype)
    candidates[:, GROUP * topk :] = surplus
    for row in range(count):
        members = candidates[row, : GROUP * topk].reshape(GROUP, topk)
        np.take(values[row, : stride * GROUP].reshape(GROUP, stride), groups[row], axis=1, out=members, mode="clip")
    places, tied = _partition(candidates, topk)
    member, place = np.divmod(places, topk)
    positions = member * stride + np.take_along_axis(groups, place, axis=1)
    if surplus.shape[1]:
        positions = np.where(places < GROUP * topk, positions, places + GROUP * (stride - topk))
    return positions, tied | tied_groups
