"""tau2-bench's domains as environments: their policy, tools, databases and evaluator, our loop.

    def world(task): return Tau2Environment(lambda world: Tau2User(world, customer))
    await run_episodes(tau2_tasks("airline"), world, agent, samplings, Rules(user=tau2_user))

Each episode has a database of its own, and the tools of a turn run in their order, as the evaluator will run them
again. The verdict is that of tau2-bench. Where its reward asks for assertions in natural language, which only a model
can judge, that part is None and the outcome is the product of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from baleen.agent.adapters.tau2_messages import (
    Requestor,
    UserAction,
    arguments_of,
    says_nothing,
    tool_specs,
    trajectory,
)
from baleen.agent.adapters.tau2_package import missing_data, tau2_domain, tau2_module
from baleen.agent.environment import Environment, InfrastructureError
from baleen.agent.episode import Episode, Status
from baleen.agent.task import Task
from baleen.agent.user import UserSimulator
from baleen.chat.messages import Message, ToolCall, ToolSpec

WRONG_ARGUMENTS = "Error: arguments of {name} must be a JSON object"
NO_POWERS = "Error: powers are not supported"

MakeUser = Callable[["Tau2Environment"], UserSimulator]


def tau2_tasks(domain: str, split: str = "base", checkout: str | Path | None = None) -> list[Task]:
    """The tasks of one of tau2-bench's domains and splits, as references to its own. Raises `Tau2Missing`, and
    `ValueError` for a domain or split that it does not have."""
    return [
        Task(
            id=f"tau2/{domain}/{name}",
            family="general",
            domain="tools",
            difficulty=max(1, len(gold_actions(theirs))),
            split="train" if split == "train" else "test",
            messages=(),  # the world opens the conversation: its policy, its greeting, what the user says first
            environment=f"tau2/{domain}",
            verifier="tau2",
            metadata={"tau2": {"domain": domain, "split": split, "id": name}},
        )
        for name, theirs in tau2_domain(domain, split, checkout).items()
    ]


def gold_actions(theirs: Any) -> list[Any]:
    """The reference actions of a task of tau2-bench's, the assistant's and the user's."""
    return list(theirs.evaluation_criteria.actions or []) if theirs.evaluation_criteria else []


def tau2_user(task: Task, environment: Environment) -> UserSimulator | None:
    """For `Rules.user`: whoever opened the conversation goes on speaking."""
    assert isinstance(environment, Tau2Environment), "tau2_user speaks in a Tau2Environment"
    return environment.user


class Tau2Environment:
    """One episode of a tau2-bench task, of any of its domains. `user` makes who speaks for the customer.

    How long an episode may be is for the loop's limits; tau2-bench's own rule of ten failing calls is not applied.
    """

    def __init__(self, user: MakeUser, checkout: str | Path | None = None) -> None:
        self._make_user, self.checkout = user, checkout
        self._world: Any = None
        self.theirs: Any = None
        """tau2-bench's own task."""

        self.user: UserSimulator | None = None
        self.user_tools: list[ToolSpec] = []
        """What the customer can do on their own device; only telecom has such tools."""

        self.user_actions: list[UserAction] = []

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """A database of its own; the instructions with the domain's policy, the greeting, the user's first words."""
        domain, self.theirs = _theirs(task, self.checkout)
        self._world = await asyncio.to_thread(self._fresh, domain)
        self.user_actions = []
        self.user_tools = []
        if self._world.user_tools is not None:
            self.user_tools = tool_specs(self._world.get_user_tools(include=self.theirs.user_tools))
        agent = tau2_module("agent.llm_agent", self.checkout)
        instructions = agent.SYSTEM_PROMPT.format(
            agent_instruction=agent.AGENT_INSTRUCTION, domain_policy=self._world.get_policy()
        )
        greeting = tau2_module("orchestrator.orchestrator", self.checkout).DEFAULT_FIRST_AGENT_MESSAGE.content
        opening = [Message(role="system", content=instructions), Message(role="assistant", content=greeting)]
        self.user = self._make_user(self)
        said = await self.user.next(opening)
        if said is None:
            raise InfrastructureError(f"{task.id}: the user ended the conversation before saying anything")
        return [*opening, said], tool_specs(self._world.get_tools())

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """The results in tau2-bench's words. One after the other: the evaluator repeats them in this order."""
        return [self._answer(call, "assistant") for call in calls]

    def act_as_user(self, call: Message, before: int) -> tuple[Message, ...]:
        """Runs the calls of `call` with the user's tools, before the conversation's message of index `before`."""
        results = tuple(self._answer(one, "user") for one in call.tool_calls)
        self.user_actions.append(UserAction(before, call, results))
        return results

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """tau2-bench's reward and its parts; an episode that ran into a limit, or in which the assistant once said
        nothing at all, gets 0 there."""
        return await asyncio.to_thread(
            tau2_rewards, episode.task, episode.messages, episode.status, self.user_actions, self.checkout
        )

    async def close(self) -> None:
        """Lets go of the database."""
        self._world = None

    def _fresh(self, domain: str) -> Any:
        try:
            world = tau2_module("registry", self.checkout).registry.get_env_constructor(domain)()
        except FileNotFoundError as error:
            raise missing_data(error) from error
        state = self.theirs.initial_state
        world.set_state(
            initialization_data=state.initialization_data if state else None,
            initialization_actions=state.initialization_actions if state else None,
            message_history=[],
        )
        return world

    def _answer(self, call: ToolCall, requestor: Requestor) -> Message:
        name, arguments = call.function.name, arguments_of(call)
        if arguments is None:
            return Message(role="tool", tool_call_id=call.id, content=WRONG_ARGUMENTS.format(name=name))
        if name == "calculate" and "**" in str(arguments.get("expression")):
            # Their tool evaluates it in this process: 9**9**9 would hold up every other episode for hours.
            return Message(role="tool", tool_call_id=call.id, content=NO_POWERS)
        theirs = tau2_module("data_model.message", self.checkout).ToolCall(
            id=call.id or "", name=name, arguments=arguments, requestor=requestor
        )
        return Message(role="tool", tool_call_id=call.id, content=self._world.get_response(theirs).content)


def tau2_rewards(
    task: Task,
    messages: Sequence[Message],
    status: Status = "finished",
    user_actions: Sequence[UserAction] = (),
    checkout: str | Path | None = None,
) -> dict[str, float | None]:
    """tau2-bench's verdict on a conversation, live or out of a record; blocking, about a second. Parts are its own
    (`db`, `communicate`, `env_assertion`, `action`, `nl_assertion`), `outcome` their product."""
    domain, theirs = _theirs(task, checkout)
    judged = theirs.model_copy(deep=True)
    rewards: dict[str, float | None] = {}
    criteria = judged.evaluation_criteria
    if criteria is not None and criteria.nl_assertions:
        basis = [part for part in criteria.reward_basis if part.value != "NL_ASSERTION"]
        if len(basis) < len(criteria.reward_basis):
            criteria.reward_basis = basis
            rewards["nl_assertion"] = None
    evaluator = tau2_module("evaluator.evaluator", checkout)
    verdict = evaluator.evaluate_simulation(
        simulation=_simulation(task.id, messages, status, user_actions, checkout),
        task=judged,
        evaluation_type=evaluator.EvaluationType.ALL,
        solo_mode=False,
        domain=domain,
    )
    parts: Mapping[Any, float] = verdict.reward_breakdown or {}
    return {"outcome": float(verdict.reward), **{part.value.lower(): float(parts[part]) for part in parts}, **rewards}


def _simulation(
    name: str,
    messages: Sequence[Message],
    status: Status,
    user_actions: Sequence[UserAction],
    checkout: str | Path | None,
) -> Any:
    """The conversation as if tau2-bench had run it."""
    if any(says_nothing(message) for message in messages):
        ending = "agent_error"
    else:
        ending = "user_stop" if status == "finished" else "max_steps"
    return tau2_module("data_model.simulation", checkout).SimulationRun(
        id=name,
        task_id=name,
        start_time="",
        end_time="",
        duration=0.0,
        termination_reason=ending,
        messages=trajectory(messages, user_actions),
    )


def _theirs(task: Task, checkout: str | Path | None) -> tuple[str, Any]:
    """The domain and tau2-bench's own task behind one of `tau2_tasks`."""
    reference = task.metadata.get("tau2")
    if not isinstance(reference, dict):
        raise ValueError(f"{task.id} is no task of tau2-bench's: take those of tau2_tasks")
    domain, split, name = (reference[key] for key in ("domain", "split", "id"))
    theirs = tau2_domain(domain, split, checkout).get(name)
    if theirs is None:
        raise ValueError(f"this tau2-bench has no task {name!r} in {domain}, {split}: {task.id} is of another version")
    return domain, theirs
