"""Where a policy acts. Message space only: an environment never sees a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolCall, ToolSpec

if TYPE_CHECKING:
    from baleen.agent.episode import Episode


class Environment(Protocol):
    """One live world for one episode at a time."""

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """A fresh world for `task`: the opening messages and the tools on offer."""
        ...

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """Runs the calls of one turn and returns one tool message per call, in order. What the model did wrong comes
        back as a readable message; `InfrastructureError` is for what is not the model's fault."""
        ...

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """The reward's parts, 0 to 1 each; `outcome` is always among them. None means not scored, which is not 0."""
        ...

    async def close(self) -> None:
        """Ends what `reset` started: processes, sandboxes, connections. May be called twice, and before `reset`."""
        ...


@runtime_checkable
class EndingEnvironment(Protocol):
    """An environment in which a call can end the episode, such as `submit`."""

    @property
    def ended(self) -> bool:
        """Whether the policy is not to be asked any more; looked at after each step."""
        ...


class InfrastructureError(RuntimeError):
    """The environment itself failed: the episode is retried or left out, and never scored."""
