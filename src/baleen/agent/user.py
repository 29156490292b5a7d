"""Who speaks between the assistant's turns: a script, or a second policy that plays a person.

A conversation of several turns is where the thinking rule bites: a new user message drops the reasoning before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from baleen.agent.policy import Policy, Sampling, turn_seed
from baleen.chat.messages import Message, Role

DONE = "###DONE###"
"""What a policy that plays the user says when it has what it wanted."""


class UserSimulator(Protocol):
    """Speaks when the assistant has answered without calling anything."""

    async def next(self, messages: Sequence[Message]) -> Message | None:
        """The next user message of the conversation, or None when it is over."""
        ...


@dataclass(frozen=True)
class ScriptedUser:
    """Says its `lines` in order, whatever the assistant answers, and is then content."""

    lines: tuple[str, ...]

    async def next(self, messages: Sequence[Message]) -> Message | None:
        """The line after those that were said; the conversation tells how many, so that a retry begins anew."""
        said = 0
        for message in messages:
            said += message.role == "user" and said < len(self.lines) and message.content == self.lines[said]
        return Message(role="user", content=self.lines[said]) if said < len(self.lines) else None


@dataclass(frozen=True)
class PolicyUser:
    """A policy that plays the person described by `instructions`. It sees what a person would: the words of both
    sides, neither reasoning nor tools. It ends the conversation with a message that contains `stop`."""

    policy: Policy
    instructions: str
    sampling: Sampling = field(default_factory=lambda: Sampling(thinking=False))
    stop: str = DONE

    async def next(self, messages: Sequence[Message]) -> Message | None:
        """What the person says next."""
        flipped = [Message(role="system", content=self.instructions)]
        for message in messages:
            if message.role in ("user", "assistant") and message.content and message.content.strip():
                flipped.append(Message(role=_OTHER[message.role], content=message.content))
        turn = sum(message.role == "assistant" for message in messages)
        sampling = replace(self.sampling, seed=turn_seed(self.sampling.seed, turn))
        said = (await self.policy.complete(flipped, [], sampling)).message.content or ""
        return None if self.stop in said or not said.strip() else Message(role="user", content=said.strip())


_OTHER: dict[str, Role] = {"user": "assistant", "assistant": "user"}
