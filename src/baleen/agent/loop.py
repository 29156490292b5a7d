"""The loop of an agent: think, call, observe, until there is nothing left to call and nobody left to ask.

An episode depends on its task, its policy and its seed alone: the seed of every turn is derived from the sampling's
seed, the attempt's index and the turn, never from the order in which episodes that run at once happen to advance.
Whatever goes wrong ends in a status. What is not the model's doing is tried again in a fresh environment, with the same
seeds, and is never scored.
"""

from __future__ import annotations

import asyncio
import re
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from baleen.agent.context import Context, ContextManagement
from baleen.agent.environment import EndingEnvironment, Environment, InfrastructureError
from baleen.agent.episode import NOT_THE_MODELS, Episode, Status, Timing
from baleen.agent.journal import Journal, episode_keys
from baleen.agent.limits import EnvironmentHangs, EpisodeLimits
from baleen.agent.policy import BarrierPolicy, Completion, Policy, PolicyError, Sampling, turn_seed
from baleen.agent.task import Task
from baleen.agent.user import UserSimulator
from baleen.chat.messages import Message, ToolSpec

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rules:
    """How episodes are held, whatever the task."""

    limits: EpisodeLimits = field(default_factory=EpisodeLimits)
    context: ContextManagement = field(default_factory=ContextManagement)
    tries: int = 1
    """How often an episode is begun whose world, tools or policy's server fail."""

    user: Callable[[Task, Environment], UserSimulator | None] = lambda task, environment: None
    """Who speaks when the assistant has answered; None: nobody, the answer ends the episode."""


async def run_episode(
    task: Task,
    make_environment: Callable[[Task], Environment],
    policy: Policy,
    sampling: Sampling,
    rules: Rules | None = None,
    *,
    index: int = 0,
) -> Episode:
    """One attempt at `task`, judged. `index` numbers attempts that share one `sampling`: each has seeds of its own."""
    if isinstance(policy, BarrierPolicy):
        policy.episode_started()
    try:
        return await _attempt(task, make_environment, policy, sampling, rules or Rules(), index)
    finally:
        if isinstance(policy, BarrierPolicy):
            policy.episode_ended()


async def run_episodes(
    tasks: Sequence[Task],
    make_environment: Callable[[Task], Environment],
    policy: Policy,
    samplings: Sequence[Sampling],
    rules: Rules | None = None,
    *,
    at_once: int | None = None,
    journal: Journal | None = None,
    on_done: Callable[[int, Episode], None] | None = None,
) -> list[Episode]:
    """All attempts, task i with sampling i, `at_once` of them (None: all) side by side; episodes in the order of
    `tasks`. What `journal` holds is not run again. `on_done(i, episode)` hears of each as it ends. An exception of the
    policy's own code, or of ours, stops the others and is raised."""
    if len(tasks) != len(samplings):
        raise ValueError(f"{len(tasks)} tasks but {len(samplings)} samplings; give one for each task")
    rules = rules or Rules()
    keys = episode_keys(tasks, samplings)
    ended = {} if journal is None else journal.ended
    episodes = {index: ended[key] for index, key in enumerate(keys) if key in ended}
    missing = [index for index in range(len(tasks)) if index not in episodes]
    indices = iter(missing)
    width = min(len(missing), at_once or len(missing))
    if isinstance(policy, BarrierPolicy):
        for _ in range(width):
            policy.episode_started()

    async def work() -> None:
        # One episode after the other. The barrier counts the place, not the episode: between two of them the engine
        # waits, or its batches would depend on how fast an environment was.
        try:
            for index in indices:
                episode = await _attempt(tasks[index], make_environment, policy, samplings[index], rules, 0)
                episodes[index] = episode
                if journal is not None:
                    journal.append(keys[index], episode)
                if on_done is not None:
                    on_done(index, episode)
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


async def _attempt(
    task: Task,
    make_environment: Callable[[Task], Environment],
    policy: Policy,
    sampling: Sampling,
    rules: Rules,
    index: int,
) -> Episode:
    tries = 0
    while True:
        tries += 1
        environment = make_environment(task)
        try:
            talk = _Conversation(task, environment, policy, rules)
            episode = await talk.held(sampling, index)
        finally:
            await _closed(environment, rules.limits)
        if episode.status not in NOT_THE_MODELS or tries >= rules.tries:
            return replace(episode, tries=tries)


class _WorldError(Exception):
    """Carries what an environment raised out of the loop, apart from our own mistakes and the policy's."""

    def __init__(self, cause: Exception) -> None:
        self.status: Status = "infrastructure_error" if isinstance(cause, InfrastructureError) else "tool_error"
        super().__init__(str(cause) if self.status == "infrastructure_error" else f"{type(cause).__name__}: {cause}")


class _Conversation:
    """What has been said so far; survives a failing environment."""

    def __init__(self, task: Task, environment: Environment, policy: Policy, rules: Rules) -> None:
        self.task, self.environment, self.policy, self.rules = task, environment, policy, rules
        self.messages: list[Message] = []
        self.tools: list[ToolSpec] = []
        self.completions: list[Completion] = []
        self.timings: list[Timing] = []
        self.context: Context | None = None
        self.began = time.monotonic()

    async def held(self, sampling: Sampling, index: int) -> Episode:
        """The whole episode, judged where it may be."""
        try:
            try:
                async with asyncio.timeout(self.rules.limits.seconds) as clock:
                    status = await self._hold(sampling, index)
            except TimeoutError:
                if not clock.expired():
                    raise
                status = "time_limit"
            rewards = await self._ask(self.environment.verify(self._episode(status)))
        except _WorldError as error:
            return self._episode(error.status, error=str(error))
        except PolicyError as error:
            return self._episode("policy_error", error=str(error))
        return replace(self._episode(status), rewards=dict(rewards))

    async def _hold(self, sampling: Sampling, index: int) -> Status:
        opening, tools = await self._ask(self.environment.reset(self.task))
        self.messages, self.tools = list(opening), list(tools)
        self.context = Context(self.rules.context, len(opening))
        user = self.rules.user(self.task, self.environment)
        limits = self.rules.limits
        for turn in range(limits.turns):
            left = None if limits.tokens is None else limits.tokens - self._sampled()
            if left is not None and left <= 0:
                return "token_limit"
            most = sampling.max_tokens if left is None else min(left, sampling.max_tokens)
            seeded = replace(sampling, seed=turn_seed(sampling.seed, turn, index), max_tokens=most)
            completion = await self._complete(seeded)
            if completion.finish_reason == "length":  # whatever it was about to call is incomplete
                return "token_limit" if most < sampling.max_tokens else "truncated"
            calls = completion.message.tool_calls
            if calls:
                if limits.calls is not None and sum(len(m.tool_calls) for m in self.messages) > limits.calls:
                    return "call_limit"
                await self._observe(calls)
                if isinstance(self.environment, EndingEnvironment) and self.environment.ended:
                    return "finished"
            else:
                said = None if user is None else await self._ask(user.next(tuple(self.messages)))
                if said is None:
                    return "finished"
                self.messages.append(said)
        return "turn_limit"

    async def _complete(self, sampling: Sampling) -> Completion:
        assert self.context is not None
        began = time.monotonic()
        shown = await self.context.fit(self.messages, self.tools, self.policy, sampling)
        completion = await self.policy.complete(tuple(shown), tuple(self.tools), sampling)
        self.timings.append(Timing(time.monotonic() - began))
        self.completions.append(completion)
        self.messages.append(completion.message)
        return completion

    async def _observe(self, calls: Sequence[Any]) -> None:
        began = time.monotonic()
        answers = await self._ask(self.environment.step(calls))
        if len(answers) != len(calls):
            name = type(self.environment).__name__
            raise _WorldError(RuntimeError(f"{name}.step gave {len(answers)} answers to {len(calls)} calls"))
        self.messages.extend(map(_encodable, answers))
        self.timings[-1] = replace(self.timings[-1], tools_seconds=time.monotonic() - began)

    async def _ask(self, asked: Coroutine[Any, Any, _T]) -> _T:
        """What the world answers, within its time. Whatever it raises instead is its own fault, not the loop's."""
        try:
            async with asyncio.timeout(self.rules.limits.step_seconds) as clock:
                return await asked
        except PolicyError:
            raise  # a user who is a policy
        except TimeoutError as error:
            if not clock.expired():
                raise _WorldError(error) from error
            seconds = self.rules.limits.step_seconds
            raise _WorldError(EnvironmentHangs(f"the environment did not answer within {seconds:g} s")) from error
        except Exception as error:
            raise _WorldError(error) from error

    def _sampled(self) -> int:
        events = self.context.events if self.context else []
        summaries = [event.summary for event in events if event.summary]
        return sum(len(completion.sampled_tokens) for completion in [*self.completions, *summaries])

    def _episode(self, status: Status, error: str = "") -> Episode:
        return Episode(
            task=self.task,
            messages=tuple(self.messages),
            tools=tuple(self.tools),
            completions=tuple(self.completions),
            status=status,
            error=error,
            context_events=tuple(self.context.events) if self.context else (),
            timings=tuple(self.timings),
            seconds=time.monotonic() - self.began,
        )


def _encodable(message: Message) -> Message:
    """The message without halves of surrogate pairs, which tools bring along and no tokenizer can read."""
    content = message.content
    if content is None or content.isascii():
        return message
    readable = content.encode("utf-8", "replace").decode("utf-8") if _SURROGATE.search(content) else content
    return message if readable is content else message.model_copy(update={"content": readable})


_SURROGATE = re.compile("[\ud800-\udfff]")


async def _closed(environment: Environment, limits: EpisodeLimits) -> None:
    """Closes `environment`, also when the episode is being cancelled. A failure to close changes no verdict."""
    try:
        async with asyncio.timeout(limits.step_seconds):
            await environment.close()
    except Exception as error:  # noqa: BLE001 - as above
        name = type(environment).__name__
        warnings.warn(f"{name}.close failed, something may still run: {error!r}", RuntimeWarning, stacklevel=2)
