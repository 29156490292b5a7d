"""A policy that follows a script and an environment that counts: small, real, deterministic."""

import asyncio
import random

from baleen.agent.environment import InfrastructureError
from baleen.agent.policy import Completion
from baleen.agent.task import Task
from baleen.agent.tools import Toolbox
from baleen.chat.messages import FunctionCall, Message, ToolCall


def task(name="t", script=("add", "done"), **metadata):
    return Task(
        id=name,
        family="general",
        domain="tools",
        difficulty=1,
        messages=(Message(role="user", content=f"task {name}"),),
        environment="counter",
        verifier="count",
        metadata={"script": list(script), **metadata},
    )


class ScriptedPolicy:
    """Turn k does what the k-th word of the task's script says; its tokens are drawn from the turn's seed."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.seeds = {}

    async def complete(self, messages, tools, sampling):
        name = next(m.content for m in messages if m.role == "user").removeprefix("task ")
        turn = sum(m.role == "assistant" for m in messages)
        self.seeds.setdefault(name, []).append(sampling.seed)
        await asyncio.sleep(random.random() / 500)  # episodes overtake each other
        word = self.scripts[name][turn]
        calls = (
            [] if word in ("done", "long") else [_call(word, turn, part) for part in range(2 if word == "two" else 1)]
        )
        return Completion(
            message=Message(
                role="assistant", content=word if not calls else None, reasoning_content="so", tool_calls=calls
            ),
            prompt_tokens=tuple(range(len(messages))),
            sampled_tokens=tuple(random.Random(sampling.seed).sample(range(100), 3)),
            finish_reason="length" if word == "long" else "tool_calls" if calls else "stop",
        )


class BarrierScriptedPolicy(ScriptedPolicy):
    """Notes the order of events, as an engine that waits for all would see them."""

    def __init__(self, scripts):
        super().__init__(scripts)
        self.events = []

    def episode_started(self):
        self.events.append("started")

    def episode_ended(self):
        self.events.append("ended")

    async def complete(self, messages, tools, sampling):
        self.events.append("complete")
        return await super().complete(messages, tools, sampling)


class Counter:
    """`add` counts; `crash` is a failure of the world itself, `bug` a fault of a tool, `hang` never ends. Verified by
    the count that the task wants."""

    opened = 0

    async def reset(self, task):
        self.count = 0
        self.task = task
        self.toolbox = Toolbox([self.add, self.crash, self.bug, self.hang])
        Counter.opened += 1
        if task.metadata.get("broken") == "reset":
            raise InfrastructureError("no world today")
        return list(task.messages), self.toolbox.specs

    async def step(self, calls):
        return [await self.toolbox.call(call) for call in calls]

    async def verify(self, episode):
        if self.task.metadata.get("broken") == "verify":
            raise InfrastructureError("no verdict today")
        return {"outcome": float(self.count == self.task.metadata.get("want", 1)), "steps": float(self.count)}

    def add(self, by: int = 1) -> int:
        """Adds."""
        self.count += by
        return self.count

    async def close(self):
        Counter.opened -= 1

    async def crash(self) -> str:
        """Fails."""
        raise InfrastructureError("the world went away")

    def bug(self) -> str:
        """Is wrong."""
        return {}["nothing"]

    async def hang(self) -> str:
        """Waits for ever."""
        await asyncio.Event().wait()


def _call(word, turn, part):
    name = "add" if word == "two" else word
    return ToolCall(id=f"{turn}-{part}", function=FunctionCall(name=name))
