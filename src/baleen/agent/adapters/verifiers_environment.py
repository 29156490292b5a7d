"""Tasks of a `verifiers` (v1) task set as an `Environment` here: our loop holds the episode, verifiers is the world.

verifiers' own rollout sets the task up, serves its tool servers, finalises and scores; in the place of its agent's
program stands a session that waits for our episode and writes what was said into the trace. So tasks with tools and
`@vf.reward` run as their author wrote them; task sets that bring an `Env` of their own (games, several agents) do not.

    tasks = verifiers_tasks("package", {"split": "test"})
    environment = VerifiersEnvironment("package", {"split": "test"})

Needs `verifiers` 0.4, with the runtime `subprocess`: what a task runs, it runs on this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.graph import MessageNode
from verifiers.v1.rollout import Rollout, RolloutTimeouts
from verifiers.v1.session import RolloutLimits
from verifiers.v1.utils import loaders

from baleen.agent.adapters.verifiers import from_verifiers, to_verifiers
from baleen.agent.environment import InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.mcp.client import McpTools
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec

logger = logging.getLogger(__name__)
_STOPS = {"turn_limit": "max_turns", "token_limit": "max_total_tokens", "truncated": "max_output_tokens"}
"""verifiers' words for how an episode of ours ended; every other one is `agent_completed`."""


def verifiers_tasks(taskset: str, settings: Mapping[str, Any] | None = None, *, limit: int | None = None) -> list[Task]:
    """The tasks of a task set that verifiers can import by its id, the first `limit` of them; `settings` are its
    config's. Raises `ValueError` for one that plays its tasks with an `Env` of its own, or never ends without `limit`.
    """
    loaded = _load(taskset, settings)
    if limit is None and not loaded.bounded:
        raise ValueError(f"the task set {taskset!r} is infinite; say how many tasks with limit=")
    return [_ours(taskset, task) for task in itertools.islice(loaded, limit)]


class VerifiersEnvironment:
    """One rollout of the task that `metadata["idx"]` names."""

    def __init__(self, taskset: str, settings: Mapping[str, Any] | None = None) -> None:
        self._taskset = _load(taskset, settings)
        self._rollout: asyncio.Task[vf.Trace | None] | None = None
        self._ended: asyncio.Future[Episode | None] | None = None
        self._servers: dict[str, McpTools] = {}
        self._tools: dict[str, tuple[McpTools, str]] = {}

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """Sets the task up; its prompt, and the tools of its servers, prefixed with their server's name where it has
        one. Raises `InfrastructureError` where verifiers cannot set it up."""
        await self.close()
        theirs = next(itertools.islice(self._taskset, task.metadata["idx"], None))
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[dict[str, str]] = loop.create_future()
        self._ended = loop.create_future()
        # A task of its own, since what it opens must be closed where it was opened.
        self._rollout = asyncio.create_task(_live(theirs, ready, self._ended))
        either: list[asyncio.Future[Any]] = [ready, self._rollout]
        await asyncio.wait(either, return_when="FIRST_COMPLETED")
        if not ready.done():
            await self._rollout  # raises what went wrong
            raise InfrastructureError("verifiers ended the rollout before it began")
        specs = await self._connect(ready.result())
        return list(_ours("", theirs).messages), specs

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One answer per call; the calls of one turn run side by side."""
        return list(await asyncio.gather(*map(self._call, calls)))

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """The task's rewards by their names, and as `outcome` their weighted sum; None where scoring failed. This ends
        the rollout: verifiers scores when all tool servers are down."""
        if self._rollout is None or self._ended is None or self._ended.done():
            raise InfrastructureError("no rollout is running: a task of verifiers is judged once, after a reset")
        await self._disconnect()
        self._ended.set_result(episode)
        trace = await self._rollout
        assert trace is not None
        parts = {name: None if reward is None else float(reward.value) for name, reward in trace.rewards.items()}
        parts.pop("outcome", None)
        scored = trace.ok and bool(trace.rewards) and None not in trace.rewards.values()
        return {"outcome": float(trace.reward) if scored else None, **parts}

    async def close(self) -> None:
        """Ends the rollout without a verdict, if it still runs."""
        await self._disconnect()
        rollout, self._rollout = self._rollout, None
        if rollout is None or self._ended is None:
            return
        if rollout.done():  # `reset` or `verify` raised what went wrong
            return
        if not self._ended.done():
            self._ended.set_result(None)
        await asyncio.wait({rollout})
        if not rollout.cancelled() and (error := rollout.exception()) is not None:
            logger.warning("a rollout of verifiers was given up and failed at its end", exc_info=error)

    async def _connect(self, urls: Mapping[str, str]) -> list[ToolSpec]:
        specs = []
        for name, url in urls.items():
            server = McpTools.http(url)
            await server.open()
            self._servers[name] = server
            for spec in server.specs:
                full = f"{name}_{spec.name}" if name else spec.name
                self._tools[full] = (server, spec.name)
                specs.append(ToolSpec(function={**spec.function, "name": full}))
        return specs

    async def _disconnect(self) -> None:
        servers, self._servers, self._tools = self._servers, {}, {}
        for server in servers.values():
            await server.close()

    async def _call(self, call: ToolCall) -> Message:
        name = call.function.name
        if name not in self._tools:
            text = f"error: unknown tool {name!r}; tools: {', '.join(self._tools) or 'none'}"
            return Message(role="tool", tool_call_id=call.id, name=name, content=text)
        server, inner = self._tools[name]
        function = FunctionCall(name=inner, arguments=call.function.arguments)
        answer = await server.call(ToolCall(id=call.id, function=function))
        return answer.model_copy(update={"name": name})


class _Waiting(vf.Harness[vf.HarnessConfig]):
    """In the place of an agent's program: it says where the tools are, and runs nothing."""

    APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = True
    EXECUTES_CODE = NEEDS_CONTAINER = False

    def __init__(self) -> None:
        super().__init__(vf.HarnessConfig(id="baleen"))
        self.urls: dict[str, str] = {}

    async def session(self, *given: Any, **named: Any) -> Any:
        session = await super().session(*given, **named)
        self.urls = dict(session.mcp_urls)
        return session

    async def launch(self, *_: Any, **__: Any) -> vf.ProgramResult:
        raise RuntimeError("the episode is held outside of verifiers")


async def _live(
    task: vf.Task, ready: asyncio.Future[dict[str, str]], ended: asyncio.Future[Episode | None]
) -> vf.Trace | None:
    """One rollout, from its setup to its score; None when it was given up."""
    harness, runtime = _Waiting(), vf.SubprocessConfig()
    rollout = Rollout(
        task=task,
        agent_config=vf.AgentConfig(model="baleen", runtime=runtime),
        harness=harness,
        ctx=vf.ModelContext(model="baleen", client=vf.EvalClientConfig(), sampling=vf.SamplingConfig()),
        runtime_config=runtime,
        timeouts=RolloutTimeouts(),
        limits=RolloutLimits(),
        has_user=True,
    )
    try:
        if not await rollout.open():
            error = rollout.trace.last_error
            raise InfrastructureError(f"verifiers cannot set the task up: {error.message if error else 'no reason'}")
        ready.set_result(harness.urls)
        episode = await ended
        if episode is None:
            return None
        _write(rollout.trace, episode)
        return await rollout.close()
    finally:
        if not rollout.closed:
            await rollout.abort()


def _write(trace: vf.Trace, episode: Episode) -> None:
    for message in episode.messages:
        parent = len(trace.nodes) - 1 if trace.nodes else None
        node = MessageNode(parent=parent, message=to_verifiers(message), sampled=message.role == "assistant")
        trace.nodes.append(node)
    trace.stop(_STOPS.get(episode.status, "agent_completed"))


def _load(taskset: str, settings: Mapping[str, Any] | None) -> vf.Taskset:
    if loaders.environment_class(taskset) is not vf.SingleAgentEnv:
        raise ValueError(f"the task set {taskset!r} plays its tasks with an Env of its own; only plain ones run here")
    config = loaders.taskset_config_type(taskset).model_validate({"id": taskset, **(settings or {})})
    return loaders.load_taskset(config)


def _ours(taskset: str, task: vf.Task) -> Task:
    data = task.data
    messages = [] if data.system_prompt is None else [Message(role="system", content=data.system_prompt)]
    if isinstance(data.prompt, str):
        messages.append(Message(role="user", content=data.prompt))
    else:
        messages += [from_verifiers(message) for message in data.prompt or []]
    return Task(
        id=data.id or f"{taskset}-{data.idx}",
        family="general",
        domain="tools",
        difficulty=1,
        split="test",
        messages=tuple(messages),
        environment=f"verifiers:{taskset}",
        verifier=type(task).__name__,
        metadata={"idx": data.idx},
    )
