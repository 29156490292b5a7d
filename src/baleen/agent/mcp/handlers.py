"""A served episode in the protocol's words: its tools, its opening as a prompt, its verdict as a resource.

The verdict is a resource and not a tool, so that a model never sees it; and it is named by a template, not listed,
because clients fetch what is listed by themselves, and the first reading ends the episode.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs

from mcp import MCPError, types
from mcp.server import Server, ServerRequestContext
from mcp.types import jsonrpc

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.client import ROLE_KEY
from baleen.agent.mcp.environment import REWARD_URI
from baleen.agent.mcp.served import ServedEpisode
from baleen.chat.messages import Message, ToolSpec

TASKS_URI = "episode://tasks"
JSON = "application/json"
MOST_TASKS = 10_000
"""Names in the list of tasks."""

logger = logging.getLogger(__name__)

Context = ServerRequestContext[Any]
Answer = TypeVar("Answer")


def episode_server(episode: ServedEpisode, task_ids: Sequence[str]) -> Server[Any]:
    """The SDK's server for one session that acts in `episode`; `task_ids` are the tasks that a session may choose."""
    tools = _Handlers(episode, task_ids)
    return Server(
        "baleen",
        version=importlib.metadata.version("baleen"),
        title=f"Baleen environment {episode.task.environment}",
        on_list_tools=tools.list_tools,
        on_call_tool=tools.call_tool,
        on_list_prompts=tools.list_prompts,
        on_get_prompt=tools.get_prompt,
        on_list_resources=tools.list_resources,
        on_list_resource_templates=tools.list_resource_templates,
        on_read_resource=tools.read_resource,
    )


class _Handlers:
    """One method of the protocol each."""

    def __init__(self, episode: ServedEpisode, task_ids: Sequence[str]) -> None:
        self.episode, self.task_ids = episode, task_ids

    async def list_tools(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_tool(spec) for spec in await _world(self.episode.specs())])

    async def call_tool(self, _: Context, asked: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = json.dumps(asked.arguments or {}, ensure_ascii=False)
        text = await _world(self.episode.call(asked.name, arguments))
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=text.startswith("error:"))

    async def list_prompts(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        task = self.episode.task
        prompt = types.Prompt(name=task.id, description=f"What the task {task.id} in {task.environment} asks")
        return types.ListPromptsResult(prompts=[prompt])

    async def get_prompt(self, _: Context, asked: types.GetPromptRequestParams) -> types.GetPromptResult:
        if asked.name != self.episode.task.id:
            raise MCPError(
                jsonrpc.INVALID_PARAMS, f"no prompt {asked.name!r}; this session's is {self.episode.task.id!r}"
            )
        return types.GetPromptResult(messages=[_said(message) for message in await _world(self.episode.opening())])

    async def list_resources(self, _: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        tasks = types.Resource(uri=TASKS_URI, name="tasks", description="The tasks to choose from", mime_type=JSON)
        return types.ListResourcesResult(resources=[tasks])

    async def list_resource_templates(
        self, _: Context, __: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        reward = types.ResourceTemplate(
            uri_template=REWARD_URI + "{?answer}",
            name="reward",
            description="The verdict, given the last answer. The first reading ends the episode",
            mime_type=JSON,
        )
        return types.ListResourceTemplatesResult(resource_templates=[reward])

    async def read_resource(self, _: Context, asked: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        place, question = (*asked.uri.split("?", 1), "")[:2]
        if place == TASKS_URI:
            value: object = list(self.task_ids[:MOST_TASKS])
        elif place == REWARD_URI:
            answer = parse_qs(question, keep_blank_values=True).get("answer", [""])[0]
            value = await _world(self.episode.verdict(answer))
        else:
            raise MCPError(jsonrpc.INVALID_PARAMS, f"no resource {asked.uri}; there are {TASKS_URI} and {REWARD_URI}")
        text = json.dumps(value, ensure_ascii=False)
        contents = types.TextResourceContents(uri=asked.uri, mime_type=JSON, text=text)
        return types.ReadResourceResult(contents=[contents])


async def _world(acting: Awaitable[Answer]) -> Answer:
    """What the environment says; its failure as the protocol's internal error. The details, which may name what is on
    this machine, are for this side's log."""
    try:
        return await acting
    except InfrastructureError as error:
        logger.warning("the environment failed: %s", error, exc_info=True)
        raise MCPError(jsonrpc.INTERNAL_ERROR, "the environment failed") from error
    except Exception as error:  # a tool's own fault
        logger.exception("the environment raised what it never should")
        raise MCPError(jsonrpc.INTERNAL_ERROR, f"the environment is at fault: {type(error).__name__}") from error


def _tool(spec: ToolSpec) -> types.Tool:
    schema = spec.function.get("parameters") or {}
    return types.Tool(
        name=spec.name, description=spec.function.get("description"), input_schema={"type": "object", **schema}
    )


def _said(message: Message) -> types.PromptMessage:
    """The protocol knows users and assistants; every other role is told beside the text."""
    role: Literal["user", "assistant"] = "assistant" if message.role == "assistant" else "user"
    meta: dict[str, Any] | None = None if message.role == role else {ROLE_KEY: message.role}
    return types.PromptMessage(role=role, content=types.TextContent(text=message.content or "", _meta=meta))
