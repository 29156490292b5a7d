"""Environments of ours as a `verifiers` (v1) task set: verifiers holds the episode, our environment is the world.

The environment lives in the evaluating process, beside the verdict: each episode gets a fresh one, its tools are served
to verifiers' harness over MCP on loopback, and `@vf.reward` asks the very environment that was acted in. A module that
verifiers can import by its name makes it a plugin:

    # my_tasks.py
    from baleen.agent.adapters.verifiers import EnvironmentEnv, EnvironmentTaskset
    __all__ = ["EnvironmentEnv", "EnvironmentTaskset"]

    vf-eval my_tasks --env.taskset.tasks tasks.jsonl --env.taskset.environment package.module:make_environment

Needs `verifiers` 0.4. `verifiers_environment.py` is the way back: their tasks as an `Environment` here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import uvicorn
import verifiers.v1 as vf
from mcp import types as mcp_types
from mcp.server.lowlevel import Server
from verifiers.v1.mcp import SharedToolServer
from verifiers.v1.types import AssistantMessage, SystemMessage, ToolMessage, UserMessage, content_text
from verifiers.v1.types import ToolCall as VerifiersCall

from baleen.agent.environment import Environment, InfrastructureError
from baleen.agent.episode import Episode, Status
from baleen.agent.policy import Completion
from baleen.agent.records import read_jsonl
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec

__all__ = ["EnvironmentEnv", "EnvironmentTaskset"]

_GRACE = 5
"""Seconds that calls still running have when their episode is over."""


class EnvironmentData(vf.TaskData):
    """What verifiers keeps of a task: its own fields, and ours whole."""

    baleen: dict[str, Any]


class EnvironmentTask(vf.Task[EnvironmentData]):
    """One task, and during an episode the world in which it is solved."""

    live: Environment | None = None
    tools: Sequence[ToolSpec] = ()
    failure: InfrastructureError | None = None
    _begun = False

    def within(self, live: Environment, opening: Sequence[Message], tools: Sequence[ToolSpec]) -> EnvironmentTask:
        """This task in the world `live`, which was reset for it."""
        bound: EnvironmentTask = self.with_data(prompt=[to_verifiers(message) for message in opening])
        bound.live, bound.tools = live, tools
        return bound

    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        """A second attempt of the same agent begins in a fresh world."""
        if self._begun and self.live is not None:
            await self.live.reset(Task.model_validate(self.data.baleen))
        self._begun, self.failure = True, None

    @vf.stop
    async def world_failed(self, trace: vf.Trace) -> bool:
        """No further turn in a world that is broken."""
        return self.failure is not None

    @vf.reward
    async def outcome(self, trace: vf.Trace) -> float:
        """The environment's verdict; its other parts become metrics. Where the verifier did not run, or the world
        failed, this raises: verifiers then shows an error and no reward."""
        if self.live is None:
            raise RuntimeError("this task has no live environment; run it with EnvironmentEnv, not as a plain task")
        if self.failure is not None:
            raise self.failure
        rewards = await self.live.verify(episode_of(trace, Task.model_validate(self.data.baleen), self.tools))
        outcome = rewards.pop("outcome")
        for name, value in rewards.items():
            if value is not None:
                trace.record_metric(name, value)
        if outcome is None:
            raise RuntimeError("not scored: the environment's verifier did not run")
        return outcome


class EnvironmentTasksetConfig(vf.TasksetConfig):
    """Which tasks, and what makes their environments."""

    tasks: str = ""
    """A file of tasks, one JSON object a line (`baleen.agent.task.Task`)."""

    environment: str = ""
    """`package.module:function`: takes a task and returns its `Environment`."""


class EnvironmentTaskset(vf.Taskset[EnvironmentTask, EnvironmentTasksetConfig]):
    """Our tasks. Subclass it and override `tasks` and `environment` where a file and a function's name will not do."""

    def load(self) -> Iterator[EnvironmentTask]:
        """The tasks, in their order, with the messages that they open with."""
        for task in self.tasks():
            data = EnvironmentData(
                id=task.id,
                name=task.id,
                prompt=[to_verifiers(message) for message in task.messages],
                baleen=task.model_dump(mode="json"),
            )
            yield EnvironmentTask(data, self.config.task)

    def tasks(self) -> Iterable[Task]:
        """Raises `ValueError` when no file is named."""
        if not self.config.tasks:
            raise ValueError("name the file of tasks: --env.taskset.tasks FILE.jsonl")
        return (Task.model_validate(row) for row in read_jsonl(self.config.tasks))

    def environment(self, task: Task) -> Environment:
        """A new environment for one episode of `task`."""
        return named_function(self.config.environment)(task)


class EnvironmentEnvConfig(vf.EnvConfig):
    """One agent: verifiers' plain chat loop in a local process. The world is not in its runtime, so nothing is lost."""

    agent: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime=vf.SubprocessConfig())


class EnvironmentEnv(vf.Env[EnvironmentEnvConfig]):
    """An episode: a fresh environment, its tools served, the agent's run, the verdict."""

    async def run(self, task: EnvironmentTask, agents: vf.Agents) -> None:
        """Raises what the environment raises when it cannot be reset; verifiers records it as the episode's error."""
        ours = Task.model_validate(task.data.baleen)
        live = self.taskset.environment(ours)
        try:
            opening, tools = await live.reset(ours)
            bound = task.within(live, opening, tools)
            async with _served(bound) as url:
                # Without a name the tools keep theirs: a named server's are prefixed with it.
                await agents.agent.run(bound, tools={"": SharedToolServer(url=url, local=True, external=True)})
        finally:
            await live.close()


def named_function(name: str) -> Callable[..., Any]:
    """The function `package.module:function`. Raises `ValueError` when `name` is not of that form, or not there."""
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} is not package.module:function; name what makes an environment of a task")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from error
    return found


def to_verifiers(message: Message) -> Any:
    """`message` as verifiers holds it."""
    if message.role in ("system", "developer"):
        return SystemMessage(content=message.content or "")
    if message.role == "user":
        return UserMessage(content=message.content or "")
    if message.role == "tool":
        return ToolMessage(tool_call_id=message.tool_call_id or "", content=message.content or "", name=message.name)
    calls = [
        VerifiersCall(id=call.id or f"call_{number}", name=call.function.name, arguments=call.function.arguments)
        for number, call in enumerate(message.tool_calls)
    ]
    return AssistantMessage(
        content=message.content, reasoning_content=message.reasoning_content, tool_calls=calls or None
    )


def from_verifiers(message: Any) -> Message:
    """A message of verifiers as ours; of content in parts the text is kept."""
    fields = {"role": message.role, "content": content_text(message.content)}
    if message.role == "assistant":
        calls = [
            ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in message.tool_calls or []
        ]
        return Message(**fields, reasoning_content=message.reasoning_content, tool_calls=calls)
    if message.role == "tool":
        return Message(**fields, tool_call_id=message.tool_call_id, name=message.name)
    return Message(**fields)


def episode_of(trace: vf.Trace, task: Task, tools: Sequence[ToolSpec]) -> Episode:
    """What verifiers recorded, as an episode of ours: the last branch, each assistant message as a completion."""
    branch = trace.branches[-1] if trace.branches else None
    nodes = branch.nodes if branch is not None else []
    completions = [Completion(message=from_verifiers(node.message)) for node in nodes if node.sampled]
    return Episode(
        task=task,
        messages=tuple(from_verifiers(node.message) for node in nodes),
        tools=tuple(tools),
        completions=tuple(completions),
        status=_status(trace),
    )


def _status(trace: vf.Trace) -> Status:
    limits: dict[str, Status] = {"max_turns": "turn_limit", "max_input_tokens": "token_limit"}
    limits |= {"max_output_tokens": "token_limit", "max_total_tokens": "token_limit"}
    if trace.is_timeout:
        return "time_limit"
    if trace.stop_condition in limits:
        return limits[trace.stop_condition]
    return "truncated" if trace.is_truncated else "finished"


@contextlib.asynccontextmanager
async def _served(task: EnvironmentTask) -> AsyncIterator[str]:
    """The task's tools as an MCP server on loopback, under a path that only this episode knows."""
    path = f"/{secrets.token_urlsafe(16)}/mcp"
    app = _mcp_server(task).streamable_http_app(streamable_http_path=path, json_response=True, stateless_http=True)
    listener = socket.create_server(("127.0.0.1", 0))
    server = _InnerServer(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_GRACE))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(serving, 2 * _GRACE)  # uvicorn bounds its requests, not its application's end
        listener.close()


def _mcp_server(task: EnvironmentTask) -> Server[Any]:
    async def list_tools(*_: Any) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(tools=[_mcp_tool(spec) for spec in task.tools])

    async def call_tool(_: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        function = FunctionCall(name=params.name, arguments=json.dumps(params.arguments or {}, ensure_ascii=False))
        assert task.live is not None
        try:
            answer = (await task.live.step([ToolCall(id=f"call_{secrets.token_hex(4)}", function=function)]))[0]
        except InfrastructureError as error:
            task.failure = error  # not raised here: verifiers' client would call six times, then blame the agent
            answer = Message(role="tool", content="error: the environment failed")
        return mcp_types.CallToolResult(content=[mcp_types.TextContent(type="text", text=answer.content or "")])

    return Server("baleen", on_list_tools=list_tools, on_call_tool=call_tool)


def _mcp_tool(spec: ToolSpec) -> mcp_types.Tool:
    schema = spec.function.get("parameters") or {"type": "object", "properties": {}}
    return mcp_types.Tool(name=spec.name, description=spec.function.get("description"), input_schema=schema)


class _InnerServer(uvicorn.Server):
    """A server inside another program: signals are that program's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
