"""Demonstrations: a task's solution, run on the task's real environment, told as a conversation.

The loop that they teach: lay out the plan, call, name what came back, write down what is left of the plan, call again,
answer. The reasoning is short and worded in one way only: what a small model learns is what to say, not which of three
phrases comes next. Every value that a call or an answer needs stands in the text right before it, and so does what is
still to do. In non-thinking mode the calls and the answer come without a word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from baleen.agent.task import Task
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.synthesis.alignment import LANGUAGES, words_for
from baleen.synthesis.arithmetic import Calculator
from baleen.synthesis.environments import ALIGNMENT, MENTAL, Python, SyntheticEnvironment, judge
from baleen.synthesis.solution import Run, Step, run_solution

CALL = "Now {0} {1}."
DONE = "{0}. Done."

_CALCULATOR = Calculator()
Value = TypeVar("Value")


class BadDemonstration(RuntimeError):
    """A demonstration did not pass its own task's verifier."""


def demonstrate(task: Task) -> list[Message]:
    """The whole conversation, opening messages included, ending in the right answer. Raises `BadDemonstration`.

    Programs of the arithmetic tasks are run by `Calculator`, which prints what the sandboxed tool prints.
    """
    environment = SyntheticEnvironment(task, python=_CALCULATOR)
    answers: list[tuple[ToolCall, Message]] = []

    def call(tool: str, arguments: dict[str, Any]) -> Any:
        text = json.dumps(arguments, ensure_ascii=False)
        made = ToolCall(id=f"call_{len(answers)}", function=FunctionCall(name=tool, arguments=text))
        answer = _finish(environment.step([made]))[0]
        answers.append((made, answer))
        content = answer.content or ""
        return json.loads(content) if content.startswith("{") else content

    run = run_solution(task.metadata["solution"], call)
    thoughts = _thoughts(task, run) if task.thinking else [None] * (len(run.steps) + 1)
    messages = list(task.messages)
    for thought, (made, answer) in zip(thoughts, answers, strict=False):
        messages += [Message(role="assistant", content="", reasoning_content=thought, tool_calls=[made]), answer]
    messages.append(Message(role="assistant", content=run.answer, reasoning_content=thoughts[-1]))
    if judge(task, messages) != 1.0:
        raise BadDemonstration(f"the solution of task {task.id} answers {run.answer!r}, which its verifier refuses")
    return messages


def offered_tools(task: Task, python: Python | None = None) -> list[ToolSpec]:
    """The tools that a demonstration's conversation has on offer; without `python` the interpreter's schema alone."""
    return _finish(SyntheticEnvironment(task, python=python or _CALCULATOR).reset(task))[1]


def _thoughts(task: Task, run: Run) -> list[str | None]:
    """One thought before each call, and one before the answer."""
    if task.environment == ALIGNMENT:
        return [_wording_thought(task, run.answer)]
    if task.environment == MENTAL:
        return [DONE.format(", ".join(task.metadata["steps"]))]
    seen = ["", *(_seen(step) for step in run.steps)]
    left = task.metadata.get("plans", [""] * len(seen))
    thoughts: list[str | None] = []
    for step, known, plan in zip(run.steps, seen, left, strict=False):
        thoughts.append(". ".join(filter(None, (known, plan, CALL.format(step.tool, _given(step))))))
    return [*thoughts, DONE.format(seen[-1])]


def _seen(step: Step) -> str:
    return ", ".join(f"{reading.name} is {reading.value}" for reading in step.read)


def _given(step: Step) -> str:
    """A call's arguments as the reasoning names them; a program is named by what it prints."""
    return " and ".join(str(value).removeprefix("print(").removesuffix(")") for value in step.arguments.values())


def _wording_thought(task: Task, answer: str) -> str:
    items, language = task.metadata["items"], task.metadata["language"]
    words = words_for(items, language)
    thought = f"{' '.join(items)} in {LANGUAGES[language]} is {words}."
    return thought if answer == words else f"{thought} In the form: {answer}"


def _finish(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Runs a coroutine that never waits: the tools here answer at once. Works inside a running event loop too."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: Value = stop.value
        return value
    raise asyncio.InvalidStateError("a tool of a demonstration waited for something")
