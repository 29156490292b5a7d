"""MCP servers as an environment: each episode opens sessions of its own with them and leaves them when it ends.

What a task asks and how its outcome is judged are not the protocol's; they come from the task and from a verifier that
is given. Where the server is one of ours (`mcp/server.py`), `served_reward` asks it for the verdict.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.client import CALL_SECONDS, McpServer, McpTools
from baleen.agent.mcp.content import callable_names
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolCall, ToolSpec

if TYPE_CHECKING:
    from baleen.agent.episode import Episode

Servers = Mapping[str, McpServer]
"""Servers under short names of their own, which tell two tools of one name apart."""

Result = TypeVar("Result")
Rewards = dict[str, float | None]
Verifier = Callable[["Episode", Mapping[str, McpTools]], Awaitable[Rewards]]
"""Judges an episode; the sessions are still open, and may be asked."""

REWARD_URI = "episode://reward"


class McpEnvironment:
    """The tools of one or several MCP servers. `servers` may depend on the task. A tool that several servers offer is
    called `SERVER_TOOL`; every other one keeps its name."""

    def __init__(
        self, servers: Servers | Callable[[Task], Servers], verify: Verifier, *, call_seconds: float = CALL_SECONDS
    ) -> None:
        self.sessions: dict[str, McpTools] = {}
        self._servers, self._verify, self._call_seconds = servers, verify, call_seconds
        self._places: dict[str, tuple[McpTools, str]] = {}

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """New sessions with all servers: the task's messages, and the tools. Raises `InfrastructureError` when a
        server gives no session."""
        await self.close()
        servers = self._servers(task) if callable(self._servers) else self._servers
        self.sessions = {name: McpTools(server, call_seconds=self._call_seconds) for name, server in servers.items()}
        await _all(session.open() for session in self.sessions.values())
        return list(task.messages), self._offer()

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One tool message per call, in order; the calls run at the same time."""
        return await _all(self._call(call) for call in calls)

    async def verify(self, episode: Episode) -> Rewards:
        """What the verifier says."""
        return await self._verify(episode, self.sessions)

    async def close(self) -> None:
        """Leaves all sessions."""
        sessions, self.sessions, self._places = self.sessions, {}, {}
        await _all(session.close() for session in sessions.values())

    def _offer(self) -> list[ToolSpec]:
        offered = [(name, session, spec) for name, session in self.sessions.items() for spec in session.specs]
        often = Counter(spec.name for _, _, spec in offered)
        wanted = [f"{server}_{spec.name}" if often[spec.name] > 1 else spec.name for server, _, spec in offered]
        specs = []
        for name, (_, session, spec) in zip(callable_names(wanted), offered, strict=True):
            self._places[name] = (session, spec.name)
            specs.append(ToolSpec(function={**spec.function, "name": name}))
        return specs

    async def _call(self, call: ToolCall) -> Message:
        name = call.function.name
        if name not in self._places:
            text = f"error: unknown tool {name!r}; tools: {', '.join(self._places) or 'none'}"
            return Message(role="tool", tool_call_id=call.id, name=name, content=text)
        session, original = self._places[name]
        function = call.function.model_copy(update={"name": original})
        answer = await session.call(call.model_copy(update={"function": function}))
        return answer.model_copy(update={"name": name})


async def served_reward(episode: Episode, sessions: Mapping[str, McpTools]) -> Rewards:
    """The verdict of the first server, which serves an environment of ours, on the episode's last answer. An episode
    that did not finish has no answer."""
    session = next(iter(sessions.values()), None)
    if session is None:
        raise InfrastructureError("there is no session with an MCP server to ask for the verdict")
    last = episode.messages[-1] if episode.messages else None
    question = ""
    if last is not None and last.role == "assistant" and episode.status == "finished":
        question = f"?answer={quote(last.content or '', safe='')}"
    text = await session.read(REWARD_URI + question)
    try:
        return {str(part): None if value is None else float(value) for part, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InfrastructureError(f"{REWARD_URI} of the MCP server is no verdict: {text[:200]}") from error


async def _all(waits: Iterable[Awaitable[Result]]) -> list[Result]:
    """The results in order. The first failure is raised when all have ended, so that none goes on alone."""
    results = await asyncio.gather(*waits, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException):
            raise one
    return [one for one in results if not isinstance(one, BaseException)]
