"""Runs the network on what the scheduler chose: new tokens of many sequences as one flat list.

Sequences of similar length and with equally many new tokens share a rectangle, so that the indexer scores them in one
product. Where torch runs it, the list is padded as `ops/invariance.py` says, because no token's bits may depend on its
company.
"""

# M = new tokens of one forward, B = sequences of one rectangle, T = new tokens of each, P = pages, D = hidden

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.engine.recorder import Recorder
from baleen.engine.sequence import Sequence
from baleen.model.cache import FlatView, LatentCache
from baleen.model.compiled import CompiledNetwork, takes_loops
from baleen.model.decoding import Decoded, DecodingLoop
from baleen.model.network import Model
from baleen.ops.invariance import row_padding


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence, from `start` on.

    `drafted`: the last of them is only a draft. `prompt`: they are a piece of what has to be read, not a decoding step.
    """

    sequence: Sequence
    start: int
    tokens: NDArray[np.int32]
    drafted: bool = False
    prompt: bool = False

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def completes(self) -> bool:
        """Whether all tokens that the sequence has are in the cache after it, so that the next one can be sampled."""
        return self.end - self.drafted == self.sequence.length


@dataclass(frozen=True)
class Forward:
    """One forward's outcome. `first_row[i]` is the row of the i-th span's first token in hidden [M, D]."""

    hidden: Tensor
    view: FlatView
    spans: list[Span]
    first_row: list[int]


class Runner:
    """The network over one cache."""

    def __init__(self, model: Model, cache: LatentCache, recorder: Recorder | None) -> None:
        self.model, self.cache, self.recorder = model, cache, recorder
        self.compiled = takes_loops(model)
        self.decoding = DecodingLoop(model, cache)

    def forward(self, spans: Many[Span]) -> Forward:
        """Forwards all spans at once; what is left in the cache are their rows and records."""
        groups: dict[tuple[int, int], list[Span]] = {}
        for span in spans:
            groups.setdefault(self._group(span), []).append(span)
        padding = 0
        if not self.compiled:
            padding = row_padding(sum(_width(group) * len(group) for group in groups.values()))
        rectangles: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        ids: list[NDArray[np.int64]] = []
        ordered: list[Span] = []
        first_row: list[int] = []
        for group in groups.values():
            width = _width(group)
            extra, padding = (padding, 0) if width == 1 else (0, padding)
            rectangle, tokens = self._rectangle(group, width, extra)
            begin = sum(len(each) for each in ids)
            first_row += range(begin, begin + len(group) * width, width)
            ordered += group
            rectangles.append(rectangle)
            ids.append(tokens)
        if padding:
            rectangle, tokens = self._rectangle([], 1, padding)
            rectangles.append(rectangle)
            ids.append(tokens)
        flat = FlatView(self.cache, rectangles, compiled=self.compiled)
        out = self.model(torch.from_numpy(np.concatenate(ids)).unsqueeze(0), cache=flat, logits=False)
        if self.recorder is not None:
            self.recorder.record(flat.places, _joined(out.experts), _joined(out.selected))
        return Forward(out.hidden[0], flat, ordered, first_row)

    def decode(self, sequences: Many[Sequence], most: Many[int], ends: frozenset[int]) -> Decoded:
        """Decodes up to `most` tokens of each sequence, whose newest token is all that is not in the cache yet; what is
        left there are the rows and records of what was forwarded."""
        starts = np.array([sequence.computed for sequence in sequences], dtype=np.int64)
        table = self._table(sequences, int(starts.max()) + max(most), len(sequences))
        uniform = np.zeros((len(sequences), max(most)))
        for row, sequence in enumerate(sequences):
            uniform[row, : most[row]] = sequence.uniforms[sequence.sampled : sequence.sampled + most[row]]
        made = self.decoding.run(
            np.array([sequence.ids[-1] for sequence in sequences], dtype=np.int64),
            starts,
            table,
            np.array(most, dtype=np.int64),
            _padded([sequence.ends(ends) for sequence in sequences]),
            np.array([sequence.params.temperature for sequence in sequences], dtype=np.float32),
            uniform,
            records=self.recorder is not None,
        )
        if self.recorder is not None:
            rows, steps = np.nonzero(np.arange(max(most)) < made.counts[:, None])
            page, place = np.divmod(starts[rows] + steps, self.cache.page_tokens)
            places = torch.from_numpy(table[rows, page] * self.cache.page_tokens + place)
            experts, selected = (torch.from_numpy(each[rows, steps]) for each in (made.experts, made.selected))
            self.recorder.record(places, experts, selected)
        return made

    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """fp32 logits [len(rows), V] of some rows of hidden [M, D]."""
        if self.compiled:
            return torch.from_numpy(CompiledNetwork.of(self.model).logits(hidden.numpy()[rows]))
        padded = rows + [rows[-1]] * row_padding(len(rows))
        logits: Tensor = self.model.lm_head(hidden[padded])[: len(rows)].float()
        return logits

    def draft(self, done: Forward, next_ids: NDArray[np.int64]) -> Tensor:
        """The hidden [M, D] that predict the token after `next_ids` [M], which follow the tokens of the forward."""
        context = self.model.context((1, len(next_ids)), cache=done.view)
        hidden, _ = self.model.predict_second(done.hidden.unsqueeze(0), torch.from_numpy(next_ids)[None], context)
        return hidden[0]

    def _group(self, span: Span) -> tuple[int, int]:
        """Spans of one group are padded to the longest: none is more than twice as long as another."""
        count = len(span.tokens)
        if self.compiled:
            return (count, 0) if count <= 2 else (count, id(span))  # loops need no rectangles
        return count if count <= 2 else 1 + count.bit_length(), (span.end // self.cache.page_tokens).bit_length()

    def _rectangle(
        self, group: list[Span], width: int, padding: int
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
        """Pages and positions of the group's spans, padded to `width` tokens each, and their tokens; and `padding` idle
        ones."""
        rows = len(group) + padding
        starts = np.array([span.start for span in group] + [0] * padding, dtype=np.int64)
        table = self._table([span.sequence for span in group], int(starts.max()) + width, rows)
        tokens = np.zeros((rows, width), dtype=np.int64)
        for row, span in enumerate(group):
            tokens[row, : len(span.tokens)] = span.tokens
        return (table, starts[:, None] + np.arange(width)), tokens.reshape(-1)

    def _table(self, sequences: Many[Sequence], length: int, rows: int) -> NDArray[np.int64]:
        """[rows, P] the pages of each sequence's first `length` tokens; scratch where it has none."""
        table = np.zeros((rows, -(-length // self.cache.page_tokens)), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            pages = sequence.pages[: table.shape[1]]
            table[row, : len(pages)] = pages
        return table


def _joined(layers: Many[Tensor | None]) -> Tensor:
    """[M, layers, K] of the layers' [1, M, K], those left out that have none."""
    some = [each[0] for each in layers if each is not None]
    return torch.stack(some, dim=1) if some else torch.empty(0)


def _padded(lists: Many[Many[int]]) -> NDArray[np.int64]:
    """[B, longest], -1 behind."""
    made = np.full((len(lists), max(map(len, lists))), -1, dtype=np.int64)
    for row, each in enumerate(lists):
        made[row, : len(each)] = each
    return made


def _width(group: list[Span]) -> int:
    return max(len(span.tokens) for span in group)
