"""An environment out of plain functions: their toolbox, and a verdict on the episode.

    async def verify(episode): return {"outcome": float(answer_of(episode) == "42")}
    environment = ToolEnvironment(Toolbox([add, multiply]), verify)

The calls of one turn run side by side. Whatever the tools need for one episode (a sandbox, a shell, a store) is handed
over with `closing`, and ended with the episode.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence

from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.agent.tools import Toolbox
from baleen.chat.messages import Message, ToolCall, ToolSpec

Rewards = Mapping[str, float | None]
Verify = Callable[[Episode], Rewards | Awaitable[Rewards]]


class ToolEnvironment:
    """One episode's tools. `verify` gives the reward's parts, `outcome` among them; `closing` is awaited once."""

    def __init__(
        self, toolbox: Toolbox, verify: Verify, *, closing: Sequence[Callable[[], Awaitable[object]]] = ()
    ) -> None:
        self.toolbox, self._verify, self._closing = toolbox, verify, list(closing)

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """The task's own messages, and every tool of the toolbox."""
        return list(task.messages), list(self.toolbox.specs)

    @property
    def ended(self) -> bool:
        """Whether a tool has ended the episode (`submit`); its answer is `toolbox.finished.answer`."""
        return self.toolbox.finished is not None

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One tool message per call, in their order."""
        return await self.toolbox.call_all(calls)

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """What the given function says."""
        verdict = self._verify(episode)
        return dict(await verdict if inspect.isawaitable(verdict) else verdict)

    async def close(self) -> None:
        """Ends what was handed over, the last first; all of it even where one fails."""
        failed: list[Exception] = []
        while self._closing:
            try:
                await self._closing.pop()()
            except Exception as error:  # noqa: BLE001 - raised below, once everything is closed
                failed.append(error)
        if failed:
            raise failed[0]
