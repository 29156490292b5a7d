"""Environments of ours as an OpenEnv server: reset, step and state over its WebSocket, a world for each session.

    app = openenv_app({"train": tasks}, make_environment)      # a FastAPI app, for uvicorn

An action is one assistant turn in OpenAI's shape. While it calls tools, the observation holds their answers; the turn
that calls none ends the episode, and its observation carries the reward: None where the verifier did not run. Which
task is asked for with OpenEnv's own names: `reset(split="train", index=3)`.

Needs `openenv` 0.10. `openenv_environment.py` is the way back: their environments as an `Environment` here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from fastapi import FastAPI
from openenv.core.env_server import Environment as OpenEnvironment
from openenv.core.env_server import State, create_fastapi_app
from openenv.core.env_server.types import Action, Observation
from pydantic import Field

from baleen.agent.environment import Environment
from baleen.agent.episode import Episode, Status
from baleen.agent.policy import Completion
from baleen.agent.records import message_to_json
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolSpec

_Value = TypeVar("_Value")
_LOOP_LOCK = threading.Lock()


class TurnAction(Action):
    """One assistant turn: tool calls, or the answer that ends the episode."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    """In OpenAI's shape: id, type, function with name and arguments (a JSON object as text)."""


class TurnObservation(Observation):
    """What the policy reads next: the opening after a reset, the tools' answers after a turn, nothing at the end."""

    messages: list[dict[str, Any]] = Field(default_factory=list)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    """The tools on offer, in OpenAI's shape; told at the reset."""


class EpisodeState(State):
    """How far the episode is."""

    task: str | None = None
    status: Status | None = None
    """How it ended; None while it runs."""

    rewards: dict[str, float | None] = Field(default_factory=dict)
    """The reward's parts, once it ended."""


def openenv_app(
    tasks: Mapping[str, Sequence[Task]],
    make_environment: Callable[[Task], Environment],
    *,
    name: str = "baleen",
    sessions: int = 100,
    most_turns: int = 64,
) -> FastAPI:
    """OpenEnv's server over `tasks` (split to its tasks), `sessions` of them at a time. An episode of more than
    `most_turns` turns ends as `turn_limit`."""

    class Served(_ServedEnvironment):
        splits, maker, limit = dict(tasks), staticmethod(make_environment), most_turns

    return create_fastapi_app(
        Served, TurnAction, TurnObservation, max_concurrent_envs=sessions, env_name=name, state_cls=EpisodeState
    )


class _ServedEnvironment(OpenEnvironment[TurnAction, TurnObservation, EpisodeState]):
    """One session. OpenEnv calls it from threads of its own, so our side runs in one event loop for all sessions."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    splits: Mapping[str, Sequence[Task]]
    maker: Callable[[Task], Environment]
    limit: int

    def __init__(self) -> None:
        super().__init__()
        self._state = EpisodeState()
        self._live: Environment | None = None
        self._task: Task | None = None
        self._messages: list[Message] = []
        self._tools: list[ToolSpec] = []
        self._completions: list[Completion] = []

    def list_splits(self) -> list[str]:
        return list(self.splits)

    def num_tasks(self, split: str) -> int:
        return len(self._split(split))

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        return [_told(task, index) for index, task in enumerate(self._split(split))]

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        return _told(self._split(split)[index], index)

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str | None = None,
        index: int = 0,
        **_: Any,
    ) -> TurnObservation:
        """A fresh world for task `index` of `split`; without a split, of the first one. What a task is does not depend
        on the seed."""
        chosen = self._split(split if split is not None else next(iter(self.splits)))
        if not 0 <= index < len(chosen):
            raise ValueError(f"there are {len(chosen)} tasks in this split; index {index} is none of them")
        self.close()
        task = chosen[index]
        live = type(self).maker(task)
        try:
            opening, tools = _in_loop(live.reset(task))
        except BaseException:
            _in_loop(live.close())
            raise
        self._live, self._task = live, task
        self._messages, self._tools, self._completions = list(opening), list(tools), []
        self._state = EpisodeState(episode_id=episode_id, task=task.id)
        return TurnObservation(
            messages=[message_to_json(message) for message in opening],
            tools=[tool.model_dump(mode="json") for tool in tools],
        )

    def step(self, action: TurnAction, timeout_s: float | None = None, **_: Any) -> TurnObservation:
        """Runs the turn's calls, or judges the episode that it ends."""
        live = self._live
        if live is None or self._state.status is not None:
            raise ValueError("no episode is running; reset first")
        turn = Message(role="assistant", **action.model_dump(exclude={"metadata"}))
        self._messages.append(turn)
        self._completions.append(Completion(message=turn))
        self._state.step_count += 1
        if not turn.tool_calls:
            return self._ended("finished")
        answers = _in_loop(live.step(turn.tool_calls), timeout_s)
        self._messages.extend(answers)
        told = [message_to_json(message) for message in answers]
        if self._state.step_count >= self.limit:
            return self._ended("turn_limit", told)
        return TurnObservation(messages=told)

    @property
    def state(self) -> EpisodeState:
        return self._state

    def close(self) -> None:
        """Ends the session's world. May be called twice."""
        live, self._live = self._live, None
        if live is not None:
            _in_loop(live.close())

    def _ended(self, status: Status, told: Sequence[dict[str, Any]] = ()) -> TurnObservation:
        assert self._task is not None
        assert self._live is not None
        episode = Episode(
            task=self._task,
            messages=tuple(self._messages),
            tools=tuple(self._tools),
            completions=tuple(self._completions),
            status=status,
        )
        rewards = _in_loop(self._live.verify(episode))
        self._state.status, self._state.rewards = status, rewards
        metadata = {"status": status, "rewards": rewards}
        return TurnObservation(messages=list(told), done=True, reward=rewards["outcome"], metadata=metadata)

    def _split(self, name: str) -> Sequence[Task]:
        if name not in self.splits:
            raise ValueError(f"no split {name!r}; there are {', '.join(self.splits)}")
        return self.splits[name]


def _told(task: Task, index: int) -> dict[str, Any]:
    return {"id": task.id, "index": index, "domain": task.domain, "difficulty": task.difficulty}


def _in_loop(work: Coroutine[Any, Any, _Value], timeout: float | None = None) -> _Value:
    """Runs `work` in our event loop and waits for it, `timeout` seconds at most."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result(timeout)
    except TimeoutError:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _LOOP_LOCK:  # `cache` alone lets two threads make a loop each
        return _new_loop()


@cache
def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="baleen environments", daemon=True).start()
    return loop
