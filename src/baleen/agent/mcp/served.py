"""One episode that somebody outside acts in: an environment, what was called in it, and its one verdict.

A client's model speaks elsewhere; only its calls come here. Each is recorded as a turn of its own, so that the verifier
gets the conversation it expects: the opening, the calls with their answers, and the last answer as the client tells it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio

from baleen.agent.environment import EndingEnvironment, Environment, InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec

Answer = TypeVar("Answer")
MakeEnvironment = Callable[[Task], Environment]

STEP_SECONDS = 900.0
"""An environment that takes longer to start, to act or to judge hangs."""

CLOSE_SECONDS = 30.0
"""An environment that takes longer to close is left behind, and said."""


logger = logging.getLogger(__name__)


class NoSuchTask(LookupError):
    """A task was named that is not served, or there is none at all."""


def chosen(tasks: Mapping[str, Task], task_id: str | None) -> Task:
    """The task of that id; without one, the first. Raises `NoSuchTask`."""
    if not tasks:
        raise NoSuchTask("there is no task to serve")
    wanted = next(iter(tasks)) if task_id is None else task_id
    if wanted not in tasks:
        raise NoSuchTask(f"no task {task_id!r} is served here")
    return tasks[wanted]


class ServedEpisode:
    """`task` in an environment of its own, which starts when it is first needed. Calls run one after the other."""

    def __init__(self, task: Task, make_environment: MakeEnvironment, step_seconds: float = STEP_SECONDS) -> None:
        self.task = task
        self._step_seconds = step_seconds
        self.rewards: dict[str, float | None] | None = None
        self._make_environment = make_environment
        self._environment: Environment | None = None
        self._opening: list[Message] = []
        self._specs: list[ToolSpec] = []
        self._turns: list[Message] = []
        self._began = time.monotonic()
        self._failed = self._closed = False
        self._turn = asyncio.Lock()

    async def opening(self) -> list[Message]:
        """The task's opening messages. Raises `InfrastructureError` when the environment does not start."""
        async with self._turn:
            await self._started()
        return self._opening

    async def specs(self) -> list[ToolSpec]:
        """The tools on offer. Raises `InfrastructureError` when the environment does not start."""
        async with self._turn:
            await self._started()
        return self._specs

    async def call(self, name: str, arguments: str) -> str:
        """Runs one call, `arguments` being a JSON object in text; a mistake is answered `error: ...`. Raises
        what the environment raises; after that the episode never gets a score. A call that is cancelled may have
        acted, so it stays in the record."""
        async with self._turn:
            environment = await self._started()
            if self.rewards is not None:
                return "error: this episode is over, its verdict has been given; open a new session for another one"
            if isinstance(environment, EndingEnvironment) and environment.ended:
                return "error: this episode is over"
            call = ToolCall(id=f"call-{len(self._turns) // 2}", function=FunctionCall(name=name, arguments=arguments))
            try:
                [answer] = await self._in_time(environment.step([call]))
            except asyncio.CancelledError:
                cancelled = Message(role="tool", tool_call_id=call.id, name=name, content="error: cancelled")
                self._turns += [Message(role="assistant", tool_calls=[call]), cancelled]
                raise
            except Exception:  # of whatever kind: it is raised to the caller, and remembered
                self._failed = True
                raise
            self._turns += [Message(role="assistant", tool_calls=[call]), answer]
        return answer.content or ""

    async def verdict(self, answer: str) -> dict[str, float | None]:
        """The rewards for what was done and for `answer`, the model's last words. The first verdict ends the episode
        and stays, so that nobody tries answers until one is right."""
        async with self._turn:
            environment = await self._started()
            if self.rewards is None and self._failed:
                self.rewards = {"outcome": None}
            if self.rewards is None:
                said = (*self._opening, *self._turns, Message(role="assistant", content=answer))
                episode = Episode(
                    task=self.task,
                    messages=said,
                    tools=tuple(self._specs),
                    completions=(),
                    status="finished",
                    seconds=time.monotonic() - self._began,
                )
                self.rewards = dict(await self._in_time(environment.verify(episode)))
        return self.rewards

    async def close(self) -> None:
        """Closes the environment, also when the caller is being cancelled. Raises `TimeoutError` when it takes too
        long."""
        self._closed = True
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            async with self._turn:  # a call that was cancelled with the session may still be ending what it began
                pass
        environment, self._environment = self._environment, None
        if environment is not None:
            await _ended(environment)

    async def _started(self) -> Environment:
        if self._closed:
            raise InfrastructureError("the session has ended, and its environment with it")
        if self._environment is None:
            environment = self._make_environment(self.task)
            try:
                self._opening, self._specs = await self._in_time(environment.reset(self.task))
            except BaseException:
                try:
                    await _ended(environment)
                except Exception:  # why it did not start is what the caller has to hear
                    logger.exception("the environment did not start, and did not close either")
                raise
            self._environment = environment
        return self._environment

    async def _in_time(self, acting: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._step_seconds) as clock:
                return await acting
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise InfrastructureError(f"it did not answer within {self._step_seconds:g} s") from error


async def _ended(environment: Environment) -> None:
    """Closes it even where this is being cancelled: the protocol's cancel scopes cancel every wait inside them, so the
    shield must be of their kind."""
    with anyio.CancelScope(shield=True), anyio.fail_after(CLOSE_SECONDS):
        await environment.close()
