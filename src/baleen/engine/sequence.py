"""A sequence being generated, and the recordings of the slot that holds it."""

# S = tokens in a slot

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baleen.engine.sampler import SamplingParams, uniforms
from baleen.engine.trace import Trace

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """What came out: the sampled tokens (the end token included), why it ended, and the trace."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    trace: Trace
    reused_tokens: int
    """Prompt tokens that were taken from another sequence's cache."""


@dataclass
class Sequence:
    """One request on its way through the engine."""

    prompt: NDArray[np.int32]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: list[NDArray[np.int32] | None] = field(default_factory=list)
    slot: int = -1
    reused: int = 0
    finish_reason: FinishReason | None = None
    generation: Generation | None = None

    def __post_init__(self) -> None:
        self.uniforms = uniforms(self.params)

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.prompt) + len(self.tokens)

    @property
    def next_uniform(self) -> float:
        """The random number that decides the next token."""
        return float(self.uniforms[len(self.tokens)])


@dataclass
class SlotRecord:
    """What a slot of the cache holds: its tokens, and the decisions made for each while it was forwarded."""

    tokens: NDArray[np.int32]
    """[max_tokens]; the first `length` are in the cache."""

    experts: NDArray[np.int16]
    selected: NDArray[np.int16]
    length: int = 0
    busy: bool = False

    def common_prefix(self, prompt: NDArray[np.int32]) -> int:
        """How many leading tokens of `prompt` are cached here; the last one is always computed, for its logits."""
        limit = min(self.length, len(prompt) - 1)
        differs = self.tokens[:limit] != prompt[:limit]
        return int(differs.argmax()) if differs.any() else limit

    def copy_prefix(self, source: SlotRecord, length: int) -> None:
        """Takes over the first `length` tokens of another slot."""
        if source is not self:
            self.tokens[:length] = source.tokens[:length]
            self.experts[:length] = source.experts[:length]
            self.selected[:length] = source.selected[:length]
        self.length = length


def trace_of(sequence: Sequence, record: SlotRecord, version: int) -> Trace:
    """The finished sequence's trace."""
    kept_ids = kept_offsets = None
    if any(kept is not None for kept in sequence.kept):
        parts = [kept if kept is not None else np.empty(0, np.int32) for kept in sequence.kept]
        kept_ids = np.concatenate(parts)
        kept_offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
    recorded = sequence.params.trace
    forwarded = sequence.length - 1
    return Trace(
        logprobs=np.asarray(sequence.logprobs, dtype=np.float32),
        kept_ids=kept_ids,
        kept_offsets=kept_offsets,
        experts=record.experts[:forwarded].copy() if recorded else None,
        selected=record.selected[:forwarded].copy() if recorded else None,
        version=version,
    )
