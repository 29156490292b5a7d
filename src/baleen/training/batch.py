"""What a training step is fed: rows of tokens and the predictions that are trained.

A text row is one causal sequence and every token is predicted. A tree row (training/packing.py) holds many
demonstrations or episodes that share prefixes. Both become the same tensors, so there is one loss.
"""

# B = rows, S = tokens of the longest row, M = predictions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from baleen.model.network import Replay
from baleen.training.packing import PackedRow, loss_entries
from baleen.training.sample import Sample


@dataclass(frozen=True)
class Batch:
    """Rows [B, S] and M predictions: flat row index `source` [M] predicts `target` [M] with `weight` [M]."""

    tokens: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor
    position_ids: Tensor | None = None
    subtree_end: Tensor | None = None
    replay: Replay | None = None
    sample: Tensor | None = None
    """[M] which sample a prediction belongs to, and `slot` [M] its place among the sample's sampled tokens."""

    slot: Tensor | None = None

    kind: str = ""
    """What the rows are; the log then shows their loss on its own."""

    @property
    def token_count(self) -> int:
        """Tokens that the forward computes, padding included."""
        return self.tokens.numel()


def text_batch(rows: np.ndarray, weight: float = 1.0) -> Batch:
    """Causal rows [B, S] in which every following token is predicted, each with `weight`."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    count, length = tokens.shape
    source = (torch.arange(count).unsqueeze(1) * length + torch.arange(length - 1)).flatten()
    target = tokens[:, 1:].flatten()
    return Batch(tokens, source, target, torch.full((len(target),), weight), kind="text")


def tree_batch(
    rows: Sequence[PackedRow],
    samples: Sequence[Sample],
    *,
    keep_routing: bool = False,
    keep_selection: bool = False,
) -> Batch:
    """Tree rows, padded to the longest; what was sampled is predicted."""
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    # A padded token is a tree of its own: it sees only itself, and nothing sees it.
    ends = (torch.arange(length) + 1).repeat(len(rows), 1)
    sources, targets, owners, slots = [], [], [], []
    for place, row in enumerate(rows):
        size = len(row.tokens)
        tokens[place, :size] = torch.from_numpy(row.tokens.astype(np.int64))
        positions[place, :size] = torch.from_numpy(row.positions.astype(np.int64))
        ends[place, :size] = torch.from_numpy(row.subtree_end.astype(np.int64))
        entries = loss_entries(row, samples)
        sources.append(entries.source + place * length)
        targets.append(entries.target)
        owners.append(np.asarray(row.samples, dtype=np.int64)[entries.owner])
        slots.append(entries.slot)
    source = torch.from_numpy(np.concatenate(sources))
    return Batch(
        tokens,
        source,
        torch.from_numpy(np.concatenate(targets)),
        torch.ones(len(source)),
        position_ids=positions,
        subtree_end=ends,
        replay=_replay(rows, length, keep_routing, keep_selection),
        kind="tools",
        sample=torch.from_numpy(np.concatenate(owners)),
        slot=torch.from_numpy(np.concatenate(slots)),
    )


def _replay(rows: Sequence[PackedRow], length: int, keep_routing: bool, keep_selection: bool) -> Replay | None:
    experts = selected = None
    if keep_routing and rows[0].experts is not None:
        experts = torch.full((len(rows), length, *rows[0].experts.shape[1:]), -1, dtype=torch.int64)
        for place, row in enumerate(rows):
            assert row.experts is not None
            experts[place, : len(row.tokens)] = torch.from_numpy(row.experts.astype(np.int64))
    if keep_selection and rows[0].selected is not None:
        selected = torch.full((len(rows), length, *rows[0].selected.shape[1:]), -1, dtype=torch.int64)
        selected[..., 0] = torch.arange(length).view(1, length, 1)
        for place, row in enumerate(rows):
            assert row.selected is not None
            selected[place, : len(row.tokens)] = torch.from_numpy(row.selected.astype(np.int64))
    return None if experts is None and selected is None else Replay(experts, selected)
