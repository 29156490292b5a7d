"""Prefix-tree packing: every prefix that samples share is computed once.

The samples of a group share system, tools and question, often their first turns. A row lays the token trie of its
samples in depth-first preorder. Then a token's descendants stand right behind it, as one interval, and one integer
per token says all about attention:

    query q sees token k  iff  k <= q < subtree_end[k]

which is exactly "k is q itself or before it in its own sequence". Rope uses `positions`, the depth. Samples are sorted,
so that a sample's longest shared prefix is the one with its neighbour, and the trie needs no nodes: only the path of
the sample laid last.

Legend: S = tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baleen.training.sample import Sample, SampleError


@dataclass(frozen=True)
class PackedRow:
    """One row: the trie of some samples."""

    tokens: NDArray[np.int32]
    """[S]"""

    positions: NDArray[np.int32]
    """[S] each token's position in its own sequence."""

    subtree_end: NDArray[np.int32]
    """[S] the exclusive end of each token's subtree."""

    samples: tuple[int, ...]
    """Which of the samples given to `pack_tree` lie in this row."""

    row_index: tuple[NDArray[np.int32], ...]
    """Per sample of `samples`: [its length] sequence position -> row index."""

    experts: NDArray[np.int16] | None
    """[S, moe layers, experts per token] recorded routing, of the first sample that forwarded the token; -1 where none
    did (the last token of a sample)."""

    selected: NDArray[np.int32] | None
    """[S, layers, index_topk] recorded selection as row indices, ascending; -1 fills. A token that no sample forwarded
    selects itself."""


@dataclass(frozen=True)
class LossEntries:
    """The predictions of a row that are trained, M of them; a shared token has one entry per sample."""

    source: NDArray[np.int64]
    """[M] the row index whose output predicts."""

    target: NDArray[np.int64]
    """[M] the token that was sampled."""

    owner: NDArray[np.int64]
    """[M] index into `PackedRow.samples`."""

    slot: NDArray[np.int64]
    """[M] which sampled token of its sample it is, counted from 0: the column in a padded [N, T] tensor."""


def pack_tree(samples: Sequence[Sample], max_tokens: int) -> list[PackedRow]:
    """Rows of at most `max_tokens` distinct tokens that together hold every sample.

    Filled greedily in lexicographic order, so that neighbours share most. Raises `SampleError` when one sample alone is
    longer than a row, and when some samples carry recordings and others do not.
    """
    _require_same_recordings(samples)
    # Big-endian bytes compare as the token sequences do, at the speed of memcmp.
    order = sorted(range(len(samples)), key=lambda i: samples[i].tokens.astype(">u4").tobytes())
    rows: list[PackedRow] = []
    members: list[int] = []
    shared: list[int] = []
    size = 0
    for index in order:
        tokens = samples[index].tokens
        if len(tokens) > max_tokens:
            raise SampleError(
                f"a sample of {len(tokens)} tokens does not fit a row of {max_tokens}: "
                "raise the row's size or bound the episode's length"
            )
        common = common_prefix(samples[members[-1]].tokens, tokens) if members else 0
        if members and size + len(tokens) - common > max_tokens:
            rows.append(_lay(samples, members, shared))
            members, shared, size, common = [], [], 0, 0
        members.append(index)
        shared.append(common)
        size += len(tokens) - common
    if members:
        rows.append(_lay(samples, members, shared))
    return rows


def loss_entries(row: PackedRow, samples: Sequence[Sample]) -> LossEntries:
    """What `row` trains, by owner and slot: the token sampled at position p is predicted from `row_index[p - 1]`."""
    places = [np.flatnonzero(samples[index].sampled) for index in row.samples]
    counts = [len(place) for place in places]
    source = [index[place - 1] for index, place in zip(row.row_index, places, strict=True)]
    target = [samples[index].tokens[place] for index, place in zip(row.samples, places, strict=True)]
    return LossEntries(
        source=np.concatenate(source).astype(np.int64),
        target=np.concatenate(target).astype(np.int64),
        owner=np.repeat(np.arange(len(counts)), counts),
        slot=np.concatenate([np.arange(count) for count in counts]),
    )


def _lay(samples: Sequence[Sample], members: Sequence[int], shared: Sequence[int]) -> PackedRow:
    """Lays sorted `members`, whose first `shared[j]` tokens are those of the member before."""
    size = sum(len(samples[index].tokens) - common for index, common in zip(members, shared, strict=True))
    tokens = np.empty(size, dtype=np.int32)
    positions = np.empty(size, dtype=np.int32)
    subtree_end = np.empty(size, dtype=np.int32)
    row_index: list[NDArray[np.int32]] = []
    path = np.empty(0, dtype=np.int32)
    cursor = 0
    for index, common in zip(members, shared, strict=True):
        sequence = samples[index].tokens
        subtree_end[path[common:]] = cursor
        fresh = np.arange(cursor, cursor + len(sequence) - common, dtype=np.int32)
        path = np.concatenate([path[:common], fresh])
        tokens[fresh] = sequence[common:]
        positions[fresh] = np.arange(common, len(sequence), dtype=np.int32)
        row_index.append(path)
        cursor += len(fresh)
    subtree_end[path] = cursor
    experts, selected = _lay_recordings(samples, members, shared, row_index, size)
    return PackedRow(tokens, positions, subtree_end, tuple(members), tuple(row_index), experts, selected)


def _lay_recordings(
    samples: Sequence[Sample],
    members: Sequence[int],
    shared: Sequence[int],
    row_index: Sequence[NDArray[np.int32]],
    size: int,
) -> tuple[NDArray[np.int16] | None, NDArray[np.int32] | None]:
    first = samples[members[0]]
    experts = selected = None
    # A sample's last token was never forwarded, and nothing reads its output. It still passes through the model: the
    # gate is free to choose, and it sees itself, so that no empty softmax makes a NaN.
    if first.experts is not None:
        experts = np.full((size, *first.experts.shape[1:]), -1, dtype=np.int16)
    if first.selected is not None:
        selected = np.full((size, *first.selected.shape[1:]), -1, dtype=np.int32)
        selected[:, :, 0] = np.arange(size, dtype=np.int32)[:, None]
    recorded = np.zeros(size, dtype=np.bool_)
    for index, common, path in zip(members, shared, row_index, strict=True):
        sample = samples[index]
        # Where the sample before ended, this one goes on: that token has a recording only here.
        start = common - 1 if common and not recorded[path[common - 1]] else common
        span = slice(start, len(path) - 1)
        recorded[path[span]] = True
        if experts is not None and sample.experts is not None:
            experts[path[span]] = sample.experts[span]
        if selected is not None and sample.selected is not None:
            chosen = sample.selected[span].astype(np.int64)
            selected[path[span]] = np.where(chosen < 0, -1, path[chosen])
    return experts, selected


def common_prefix(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length


def _require_same_recordings(samples: Sequence[Sample]) -> None:
    for name in ("experts", "selected"):
        shapes = {None if (part := getattr(sample, name)) is None else part.shape[1:] for sample in samples}
        if len(shapes) > 1:
            raise SampleError(f"samples of one batch differ in their recorded {name} {shapes}: sample them in one way")
