"""The loop of an agent: think, call, observe, until there is nothing left to call.

An episode depends on its task, its policy and its seed alone: the seed of every turn is derived from the sampling's
seed, the attempt's index and the turn, never from the order in which episodes that run at once happen to advance.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from baleen.agent.environment import Environment, InfrastructureError
from baleen.agent.episode import Episode, Status
from baleen.agent.policy import Completion, Policy, Sampling
from baleen.agent.task import Task
from baleen.chat.messages import Message, ToolSpec


@runtime_checkable
class BarrierPolicy(Protocol):
    """A policy that waits until every running episode has asked before it answers any of them, so that its batches,
    and with them the last bits of its numbers, do not depend on how fast the environments are."""

    def episode_started(self) -> None:
        """One more place for episodes, whose episode will ask. Called for all of them before the first `complete`."""
        ...

    def episode_ended(self) -> None:
        """One of the places will not ask any more."""
        ...


async def run_episode(
    task: Task, environment: Environment, policy: Policy, sampling: Sampling, *, max_turns: int, index: int = 0
) -> Episode:
    """One attempt at `task`, judged. `index` numbers attempts that share one `sampling`: each has seeds of its own."""
    if isinstance(policy, BarrierPolicy):
        policy.episode_started()
    try:
        return await _run_started(task, environment, policy, sampling, max_turns, index)
    finally:
        if isinstance(policy, BarrierPolicy):
            policy.episode_ended()


async def run_episodes(
    tasks: Sequence[Task],
    make_environment: Callable[[Task], Environment],
    policy: Policy,
    samplings: Sequence[Sampling],
    *,
    max_turns: int,
    at_once: int | None = None,
    on_done: Callable[[int, Episode], None] | None = None,
) -> list[Episode]:
    """All attempts, task i with sampling i, `at_once` of them (None: all) side by side; episodes in the order of
    `tasks`. `on_done(i, episode)` hears of each as it ends. An exception that is no `InfrastructureError` stops the
    others and is raised."""
    if len(tasks) != len(samplings):
        raise ValueError(f"{len(tasks)} tasks but {len(samplings)} samplings; give one for each task")
    episodes: dict[int, Episode] = {}
    indices = iter(range(len(tasks)))
    width = min(len(tasks), at_once or len(tasks))
    if isinstance(policy, BarrierPolicy):
        for _ in range(width):
            policy.episode_started()

    async def work() -> None:
        # One episode after the other. The barrier counts the place, not the episode: between two of them the engine
        # waits, or its batches would depend on how fast an environment was.
        try:
            for index in indices:
                task = tasks[index]
                episodes[index] = await _run_started(
                    task, make_environment(task), policy, samplings[index], max_turns, 0
                )
                if on_done is not None:
                    on_done(index, episodes[index])
        finally:
            if isinstance(policy, BarrierPolicy):
                policy.episode_ended()

    running = [asyncio.ensure_future(work()) for _ in range(width)]
    try:
        await asyncio.gather(*running)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return [episodes[index] for index in range(len(tasks))]


def turn_seed(seed: int, turn: int, index: int = 0) -> int:
    """The seed of one turn: 63 bits of BLAKE2b over seed, index and turn."""
    digest = hashlib.blake2b(f"{seed}:{index}:{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


async def _run_started(
    task: Task, environment: Environment, policy: Policy, sampling: Sampling, max_turns: int, index: int
) -> Episode:
    began = time.monotonic()
    talk = _Conversation(task)
    try:
        status = await talk.hold(environment, policy, sampling, max_turns, index)
        rewards = await environment.verify(talk.episode(status, time.monotonic() - began))
    except InfrastructureError:
        return talk.episode("infrastructure_error", time.monotonic() - began)
    return replace(talk.episode(status, time.monotonic() - began), rewards=dict(rewards))


class _Conversation:
    """What has been said so far; survives a failing environment."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages: list[Message] = []
        self.tools: list[ToolSpec] = []
        self.completions: list[Completion] = []

    async def hold(
        self, environment: Environment, policy: Policy, sampling: Sampling, max_turns: int, index: int
    ) -> Status:
        opening, tools = await environment.reset(self.task)
        self.messages, self.tools = list(opening), list(tools)
        for turn in range(max_turns):
            seeded = replace(sampling, seed=turn_seed(sampling.seed, turn, index))
            completion = await policy.complete(tuple(self.messages), tuple(self.tools), seeded)
            self.completions.append(completion)
            self.messages.append(completion.message)
            if completion.finish_reason == "length":
                return "truncated"  # whatever it was about to call is incomplete
            calls = completion.message.tool_calls
            if not calls:
                return "finished"
            answers = await environment.step(calls)
            if len(answers) != len(calls):
                raise RuntimeError(
                    f"{type(environment).__name__}.step gave {len(answers)} answers to {len(calls)} calls"
                )
            self.messages.extend(answers)
        return "turn_limit"

    def episode(self, status: Status, seconds: float) -> Episode:
        return Episode(
            task=self.task,
            messages=tuple(self.messages),
            tools=tuple(self.tools),
            completions=tuple(self.completions),
            status=status,
            seconds=seconds,
        )
