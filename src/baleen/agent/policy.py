"""What answers: one assistant turn at a time.

`Policy` is the only face of a model that environments and episodes see. Two of them exist: our engine in this process,
and any OpenAI-compatible server. A `Completion` keeps the exact tokens, because training must never produce them again
from text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from baleen.chat.messages import Message, ToolSpec
from baleen.engine.trace import Trace

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Sampling:
    """How a turn is sampled. `seed` makes it repeatable; `thinking` chooses the mode; `max_tokens` bounds one turn."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    thinking: bool = True


@dataclass(frozen=True)
class Completion:
    """One assistant turn as the policy gave it."""

    message: Message
    prompt_tokens: tuple[int, ...] = ()
    """The exact prompt. Empty when the policy is a server that does not return token ids."""

    sampled_tokens: tuple[int, ...] = ()
    """The exact sampled tokens, the end-of-sentence token included when it was sampled."""

    trace: Trace | None = None
    finish_reason: FinishReason = "stop"
    faults: tuple[str, ...] = ()
    """What the parser had to mend in the model's text; empty for a well-formed turn."""


class Policy(Protocol):
    """Gives the next assistant turn."""

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The next turn after `messages`, with `tools` on offer."""
        ...


@runtime_checkable
class BarrierPolicy(Protocol):
    """A policy that waits until every running episode has asked before it answers any of them, so that its batches,
    and with them the last bits of its numbers, do not depend on how fast the environments are."""

    def episode_started(self) -> None:
        """One more place for episodes, whose episode will ask. Called for all of them before the first `complete`."""
        ...

    def episode_ended(self) -> None:
        """One of the places will not ask any more."""
        ...


@runtime_checkable
class CountingPolicy(Protocol):
    """A policy that knows how long a prompt will be; managing the context needs it."""

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> int:
        """The exact number of prompt tokens that `complete` with the same arguments would have."""
        ...


class PolicyError(RuntimeError):
    """The policy gave no turn: its server is away, refuses, or answers what it should not. Not the model's doing: the
    episode is tried again, and never scored."""


def turn_seed(seed: int, turn: int, index: int = 0) -> int:
    """The seed of one turn: 63 bits of BLAKE2b over seed, index and turn."""
    digest = hashlib.blake2b(f"{seed}:{index}:{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
