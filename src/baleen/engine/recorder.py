"""What every forwarded token decided, kept beside its page: a shared page brings its experts and selection along."""

# M = tokens of one forward, K = experts per token or selected positions

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from baleen.engine.sequence import Sequence
from baleen.engine.trace import Records
from baleen.model.config import ModelConfig

SHORT = 1 << 15
"""Positions that fit 16 bits."""


class Recorder:
    """experts [pages, page_tokens, moe layers, K] int16 and selected [pages, page_tokens, layers, K], int16 where
    positions fit, else int32."""

    def __init__(self, config: ModelConfig, pages: int, page_tokens: int, max_tokens: int) -> None:
        experts, selected, dtype = _shapes(config, max_tokens)
        self.experts = torch.zeros(pages, page_tokens, *experts, dtype=torch.int16) if experts[0] else None
        self.selected = torch.zeros(pages, page_tokens, *selected, dtype=dtype) if config.sparse else None

    @staticmethod
    def token_bytes(config: ModelConfig, max_tokens: int) -> int:
        """Bytes that one token's record takes."""
        experts, selected, dtype = _shapes(config, max_tokens)
        return 2 * experts[0] * experts[1] + (dtype.itemsize * selected[0] * selected[1] if config.sparse else 0)

    def record(self, places: Tensor, experts: Tensor, selected: Tensor) -> None:
        """Keeps what the tokens of rows `places` [M] decided: experts [M, moe layers, K], selected [M, layers, K]."""
        for record, made in ((self.experts, experts), (self.selected, selected)):
            if record is not None:
                record.flatten(0, 1).index_copy_(0, places, made.to(record.dtype))

    def of(self, sequence: Sequence) -> Records:
        """What is known of a sequence that was admitted: what its pages hold, or what it kept of earlier ones while
        that is more."""
        tokens = min(sequence.computed, sequence.length - 1)
        if sequence.records is not None and sequence.records.tokens > tokens:
            return sequence.records
        return Records(
            tokens, self._read(self.experts, sequence.pages, tokens), self._read(self.selected, sequence.pages, tokens)
        )

    @staticmethod
    def _read(record: Tensor | None, pages: list[int], tokens: int) -> NDArray | None:
        if record is None:
            return None
        used = torch.tensor(pages[: -(-tokens // record.shape[1])], dtype=torch.int64)
        return record.index_select(0, used).flatten(0, 1)[:tokens].numpy()


def _shapes(config: ModelConfig, max_tokens: int) -> tuple[tuple[int, int], tuple[int, int], torch.dtype]:
    """Of experts and selection, (layers, K) of one token, and the dtype of positions."""
    dtype = torch.int16 if max_tokens <= SHORT else torch.int32
    return (
        (len(config.moe_layers), config.num_experts_per_tok),
        (config.num_hidden_layers, config.index_topk if config.sparse else 0),
        dtype,
    )
