"""What answers: one assistant turn at a time.

`Policy` is the only face of a model that environments and episodes see. Two of them exist: our engine in this process,
and any OpenAI-compatible server. A `Completion` keeps the exact tokens, because training must never produce them again
from text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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
