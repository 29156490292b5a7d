"""Any OpenEnv server as an `Environment` here, spoken to by OpenEnv's own client over its WebSocket.

A server of tools (its actions are MCP's `call_tool`) offers those tools. Any other one has a single action schema,
which becomes one tool, `act`; its observations come back as JSON. OpenEnv rewards steps: the outcome is their sum, and
None where no step was rewarded, which is not 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from openenv.core import GenericEnvClient
from websockets.exceptions import ConnectionClosed

from baleen.agent.environment import InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolCall, ToolSpec

ACT = "act"
_OF_TOOLS = frozenset({"Action", "CallToolAction", "ListToolsAction"})
"""Titles of action schemas by which a server says that its actions are calls of tools."""
_NO_EPISODE = (OSError, RuntimeError, ValueError, KeyError, TypeError, httpx.HTTPError, ConnectionClosed)
"""What a server that is away, refuses, or answers in another shape than OpenEnv's makes the client raise."""


class OpenEnvEnvironment:
    """One session with the server at `url`. `reset` passes the task's `metadata["reset"]` to the server."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """`timeout`: seconds that one answer of the server may take."""
        self.url, self.timeout = url.rstrip("/"), timeout
        self._client: Any = None
        self._rewards: list[float] = []
        self._done = self._of_tools = False
        self._names: frozenset[str] = frozenset()

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """The task's messages, then the server's first observation as a user message, unless it is empty."""
        await self.close()
        try:
            self._client = _OneSession(base_url=self.url, message_timeout_s=self.timeout)
            await self._client.connect()
            schema = await self._action_schema()
            first = await self._client.reset(**task.metadata.get("reset", {}))
            tools = await self._tools(schema)
        except _NO_EPISODE as error:
            raise InfrastructureError(f"the OpenEnv server at {self.url} gives no episode: {error!r}") from error
        self._rewards, self._done = [], False
        self._names = frozenset(tool.name for tool in tools)
        opening = list(task.messages)
        if told := _without_metadata(first.observation):
            opening.append(Message(role="user", content=_compact(told)))
        return opening, tools

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One answer per call. The server's world takes one action after the other, so calls of one turn do too."""
        return [
            Message(role="tool", tool_call_id=call.id, name=call.function.name, content=await self._act(call))
            for call in calls
        ]

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """`outcome`: the sum of what the server gave for each step."""
        return {"outcome": sum(self._rewards) if self._rewards else None}

    async def close(self) -> None:
        """Ends the session; the server ends its world."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _act(self, call: ToolCall) -> str:
        name = call.function.name
        if name not in self._names:
            return f"error: unknown tool {name!r}; tools: {', '.join(sorted(self._names))}"
        if self._done:
            return "error: the episode is over; no more actions"
        try:
            given = call.function.parsed()
        except ValueError as error:
            return f"error: {name}: arguments are not a JSON object: {error}"
        action = {"type": "call_tool", "tool_name": name, "arguments": given} if self._of_tools else given
        try:
            result = await self._client.step(action)
        except RuntimeError as error:  # the client's type for every error that the server told
            if "VALIDATION_ERROR" in str(error):
                return f"error: {name}: these arguments do not fit the action's schema"
            raise InfrastructureError(f"the OpenEnv server failed at {name}: {error}") from error
        except (OSError, ConnectionClosed) as error:
            raise InfrastructureError(f"the OpenEnv server at {self.url} is gone: {error!r}") from error
        if result.reward is not None:
            self._rewards.append(float(result.reward))
        self._done = bool(result.done)
        text = _tool_text(result.observation) if self._of_tools else _compact(_without_metadata(result.observation))
        return f"{text}\n[the episode is over]" if self._done else text

    async def _action_schema(self) -> dict[str, Any]:
        """What an action is. The client does not tell it; the server's HTTP side does."""
        async with httpx.AsyncClient(timeout=self.timeout) as client:
            answer = await client.get(f"{self.url}/schema")
            answer.raise_for_status()
            schema: dict[str, Any] = answer.json()["action"]
        self._of_tools = schema.get("title") in _OF_TOOLS
        return schema

    async def _tools(self, schema: Mapping[str, Any]) -> list[ToolSpec]:
        if not self._of_tools:
            return [_spec(ACT, schema.get("description", "Acts in the environment."), schema)]
        listed = (await self._client.step({"type": "list_tools"})).observation["tools"]
        return [_spec(tool["name"], tool["description"], tool["input_schema"]) for tool in listed]


class _OneSession(GenericEnvClient):
    """OpenEnv's client without its reconnecting: behind another connection is another world, which was not reset."""

    async def _ensure_connected(self) -> None:
        if self._ws is None:
            raise ConnectionError("the session's connection was dropped")


def _spec(name: str, description: str, schema: Mapping[str, Any]) -> ToolSpec:
    properties = {key: value for key, value in schema.get("properties", {}).items() if key != "metadata"}
    kept = {key: schema[key] for key in ("required", "$defs") if schema.get(key)}
    parameters = {"type": "object", "properties": properties, **kept}
    return ToolSpec(function={"name": name, "description": description, "parameters": parameters})


def _tool_text(observation: Mapping[str, Any]) -> str:
    """A tool's result as text: the parts of MCP's content, or whatever it is as JSON."""
    if error := observation.get("error"):
        return f"error: {error.get('message', error)}"
    result = observation.get("result")
    content = result.get("content") if isinstance(result, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "\n".join(part["text"] for part in content)
    return result if isinstance(result, str) else _compact(result)


def _without_metadata(observation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in observation.items() if key != "metadata"}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
