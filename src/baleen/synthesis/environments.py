"""Synthetic tasks as live environments, and the verdict on what was answered.

A task names its world and its database's seed; everything else is grown from them when it is needed. The verdict reads
the truth where no policy reaches: by SQL in the database, by evaluating the formula, by the lexicon. Where tools are
offered an answer counts only if a call brought something back, so that a lucky guess is never rewarded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Protocol

from baleen.agent.environment import Environment
from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.agent.tools import Toolbox
from baleen.chat.messages import Message, ToolCall, ToolSpec
from baleen.synthesis.alignment import is_right
from baleen.synthesis.arithmetic import calculate
from baleen.synthesis.world import Database, World, tools
from baleen.synthesis.worlds import database

PYTHON = "arithmetic-python"
MENTAL = "arithmetic-mental"
ALIGNMENT = "alignment"


class Python(Protocol):
    """Whatever has the `python` tool: `baleen.agent.python_tool.PythonTool` before a policy."""

    @property
    def python(self) -> Callable[..., Awaitable[str]]:
        """`await python(code)`: what the program printed."""
        ...


class MissingTool(LookupError):
    """A task needs a tool that was not given."""


def make_environment(task: Task, python: Python | None = None) -> Environment:
    """The environment that `task` names. Raises `MissingTool` when it needs the `python` tool and none is given."""
    return SyntheticEnvironment(task, python)


class SyntheticEnvironment:
    """The worlds, the arithmetic and the alignment tasks: message in, message out."""

    def __init__(self, task: Task, python: Python | None = None) -> None:
        self._python = python
        self._open(task)

    async def reset(self, task: Task) -> tuple[list[Message], list[ToolSpec]]:
        """The task's messages and the tools that it offers, in its own order."""
        self._open(task)
        return list(task.messages), list(self._specs)

    async def step(self, calls: Sequence[ToolCall]) -> list[Message]:
        """One tool message per call. A tool that is not on offer is answered with the names of those that are."""
        answers = []
        with self._database.opened() if self._database else nullcontext():
            for call in calls:
                if self._toolbox is not None and call.function.name in self._offered:
                    answers.append(await self._toolbox.call(call))
                else:
                    answers.append(self._unknown(call))
        return answers

    async def verify(self, episode: Episode) -> dict[str, float | None]:
        """`outcome`: 1 for the right answer, found with the tools where there are any, else 0. An answer that was cut
        off is no answer."""
        return {"outcome": judge(self.task, episode.messages) if episode.status == "finished" else 0.0}

    async def close(self) -> None:
        """Nothing to end: the database is memory, the sandbox belongs to who made the `python` tool."""

    def _open(self, task: Task) -> None:
        self.task = task
        self._database: Database | None = None
        self._toolbox: Toolbox | None = None
        if task.environment == PYTHON:
            if self._python is None:
                raise MissingTool(f"task {task.id} needs the python tool; pass python=PythonTool() to make_environment")
            self._toolbox = _python_toolbox(self._python.python)
            self._specs = self._toolbox.specs
        elif task.environment in (MENTAL, ALIGNMENT):
            self._specs = []
        else:
            self._database = database(task.environment, task.metadata["database"])
            self._toolbox = world_toolbox(self._database.world)
            by_name = {spec.name: spec for spec in self._toolbox.specs}
            self._specs = [by_name[name] for name in task.metadata["tools"]]
        self._offered = [spec.name for spec in self._specs]

    def _unknown(self, call: ToolCall) -> Message:
        name = call.function.name
        text = f"error: unknown tool {name!r}; tools: {', '.join(self._offered) or 'none'}"
        return Message(role="tool", tool_call_id=call.id, name=name, content=text)


def judge(task: Task, messages: Sequence[Message]) -> float:
    """The outcome, 0 or 1, of a conversation about `task`. The same conversation always gets the same verdict."""
    answer = final_answer(messages)
    if not answer:
        return 0.0
    if task.verifier == "form":
        wanted = task.metadata
        return float(is_right(answer, wanted["items"], wanted["language"], wanted["form"]))
    if task.metadata["tools"] and not any(_brought_something(message) for message in messages):
        return 0.0
    return float(answer == truth(task))


def truth(task: Task) -> str:
    """The answer, from where no policy reaches."""
    if task.verifier == "query":
        return str(database(task.environment, task.metadata["database"]).query(task.metadata["query"]))
    if task.verifier == "formula":
        return str(calculate(task.metadata["formula"]))
    raise ValueError(f"no verifier {task.verifier!r}; known are query, formula and form")


def final_answer(messages: Sequence[Message]) -> str | None:
    """What was answered: the content of a last assistant message that calls nothing."""
    if not messages or messages[-1].role != "assistant" or messages[-1].tool_calls:
        return None
    return (messages[-1].content or "").strip()


def _brought_something(message: Message) -> bool:
    return message.role == "tool" and not (message.content or "").startswith(("error", '{"error"'))


@lru_cache(maxsize=256)
def world_toolbox(of: World) -> Toolbox:
    """A world's toolbox. One for all its databases: the schemas cost more to make than an episode."""
    return Toolbox(tools(of))


@lru_cache(maxsize=8)
def _python_toolbox(python: Callable[..., Awaitable[str]]) -> Toolbox:
    return Toolbox({"python": python})
