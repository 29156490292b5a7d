"""Who speaks for the customer: a policy with tau2-bench's own guidelines and the scenario of the task.

It sees what a customer sees: the words of both sides, and what their own device answered. In the telecom domain it has
tools, whose results it reads before it goes on. One of tau2-bench's three stop signs ends the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from baleen.agent.adapters.tau2 import Tau2Environment
from baleen.agent.adapters.tau2_package import tau2_module
from baleen.agent.environment import InfrastructureError
from baleen.agent.policy import Policy, Sampling, turn_seed
from baleen.chat.messages import Message, Role

MOST_ACTIONS = 20
"""Turns with calls that a user may take before saying something; past it the simulator is at fault, not the agent."""

SAMPLING = Sampling(temperature=0.0, thinking=False)


class Tau2User:
    """A `UserSimulator` of one `Tau2Environment`, played by `policy`."""

    def __init__(self, world: Tau2Environment, policy: Policy, sampling: Sampling = SAMPLING) -> None:
        self._world, self._policy, self._sampling = world, policy, sampling
        self._instructions = _instructions(world)
        self._signs = _stop_signs(world)

    async def next(self, messages: Sequence[Message]) -> Message | None:
        """What the customer says next; None at a stop sign. Raises `InfrastructureError` for a simulator that says
        nothing, or goes on acting without ever speaking."""
        for turn in range(MOST_ACTIONS):
            seed = turn_seed(self._sampling.seed, len(messages), turn)
            seen = self._seen(messages)
            answered = await self._policy.complete(seen, self._world.user_tools, replace(self._sampling, seed=seed))
            said = answered.message
            if said.tool_calls:
                self._world.act_as_user(_without_reasoning(said), before=len(messages))
                continue
            words = (said.content or "").strip()
            if not words:
                raise InfrastructureError(f"the simulated user of {self._world.theirs.id} said nothing")
            return None if any(sign in words for sign in self._signs) else Message(role="user", content=words)
        raise InfrastructureError(f"the simulated user of {self._world.theirs.id} acted {MOST_ACTIONS} times on end")

    def _seen(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation from the other side, with the user's own actions in their places."""
        seen = [Message(role="system", content=self._instructions)]
        for index in range(len(messages) + 1):
            for action in self._world.user_actions:
                if action.before == index:
                    seen += [action.call, *action.results]
            message = messages[index] if index < len(messages) else None
            if message and message.role in _OTHER and not message.tool_calls and (message.content or "").strip():
                seen.append(Message(role=_OTHER[message.role], content=message.content))
        return seen


def _instructions(world: Tau2Environment) -> str:
    """The prompt that tau2-bench gives its own simulator; the model's name in there is never used."""
    simulator: Any = tau2_module("user.user_simulator", world.checkout).UserSimulator(
        llm="", instructions=str(world.theirs.user_scenario), tools=world.user_tools or None
    )
    return str(simulator.system_prompt)


def _stop_signs(world: Tau2Environment) -> tuple[str, str, str]:
    user = tau2_module("user.user_simulator_base", world.checkout)
    return user.STOP, user.TRANSFER, user.OUT_OF_SCOPE


def _without_reasoning(message: Message) -> Message:
    return message.model_copy(update={"reasoning_content": None})


_OTHER: dict[str, Role] = {"user": "assistant", "assistant": "user"}
