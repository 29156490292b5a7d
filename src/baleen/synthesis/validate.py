"""Proofs about a task: its verifier accepts the solution and nothing less.

Per task: the solution passes; doing nothing fails; the right answer without a call fails where tools are needed; a call
that is dropped, or whose result is changed in what the solution reads, leads to a wrong answer; wrong answers fail,
among them everything seen on the way; the verdict repeats. `validate` returns what does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from baleen.agent.task import Task
from baleen.chat.messages import Message
from baleen.synthesis.alignment import FORMS, LANGUAGES, expected
from baleen.synthesis.arithmetic import calculate
from baleen.synthesis.environments import ALIGNMENT, MENTAL, PYTHON, judge
from baleen.synthesis.solution import Call, Reading, Run, SolutionError, run_solution
from baleen.synthesis.worlds import database

ALTERNATIVES = 3


def validate(task: Task) -> list[str]:
    """The faults of a task, in words; empty for a task that may be used."""
    call = plain_call(task)
    try:
        run = run_solution(task.metadata["solution"], call)
    except SolutionError as error:
        return [str(error)]
    faults = []
    if not (_passes(task, run.answer) and _passes(task, run.answer)):
        faults.append(f"the solution's answer {run.answer!r} is refused")
    if _passes(task, None) or _passes(task, ""):
        faults.append("doing nothing passes")
    if task.metadata["tools"] and _passes(task, run.answer, acted=False):
        faults.append("an answer without a call passes")
    if task.verifier == "query" and len(run.steps) != task.difficulty:
        faults.append(f"difficulty {task.difficulty}, but {len(run.steps)} calls")
    if task.metadata["tools"] and run.answer in re.findall(r"\w+", task.messages[-1].content or ""):
        faults.append("the question holds the answer")
    faults += [f"the wrong answer {wrong!r} passes" for wrong in _wrong_answers(task, run) if _passes(task, wrong)]
    return faults + _needless_steps(task, run, call)


def plain_call(task: Task) -> Call:
    """What the task's tools give to its solution, without an environment around them."""
    if task.environment == PYTHON:
        return lambda tool, arguments: str(calculate(arguments["code"].removeprefix("print")))
    if task.environment in (MENTAL, ALIGNMENT):
        return lambda tool, arguments: None
    return database(task.environment, task.metadata["database"]).call


def _passes(task: Task, answer: str | None, *, acted: bool = True) -> bool:
    messages = list(task.messages)
    if acted and task.metadata["tools"]:
        messages.append(Message(role="tool", content='{"result":0}'))
    if answer is not None:
        messages.append(Message(role="assistant", content=answer))
    return judge(task, messages) == 1.0


def _wrong_answers(task: Task, run: Run) -> Iterator[str]:
    """Near misses: a longer and a shorter answer, a neighbour, another form, and every value seen before the last."""
    yield from (run.answer + "0", run.answer[:-1], f"The answer is {run.answer}.", "0x", run.answer.swapcase() + "s")
    if run.answer.lstrip("-").isdigit():
        yield from (str(int(run.answer) + 1), str(int(run.answer) - 1))
    else:
        yield from {run.answer.upper(), run.answer.lower(), f"[{run.answer}]"} - {run.answer}
    for step in run.steps[:-1]:
        yield from (str(reading.value) for reading in step.read)
    if task.environment == ALIGNMENT:
        others = {expected(task.metadata["items"], language, form) for language in LANGUAGES for form in FORMS}
        yield from others - {run.answer}


def _needless_steps(task: Task, run: Run, call: Call) -> list[str]:
    """Steps whose result does not matter to the answer."""
    faults = []
    for index, step in enumerate(run.steps):
        if _answer_with(task, call, index, {"error": "not found"}) == run.answer:
            faults.append(f"without call {index + 1} ({step.tool}) the answer is the same")
        for reading in step.read:
            source = run.steps[reading.source]
            changed = [
                _answer_with(task, call, reading.source, _replaced(source.result, reading.name, other))
                for other in _others(task, source.tool, reading)
            ]
            same = sum(answer == run.answer for answer in changed)
            # A number that only meets a threshold changes nothing until it crosses: one of the two ends must.
            if same > (1 if isinstance(reading.value, int) else 0):
                faults.append(f"with another {reading.name} from {source.tool} the answer is the same")
    return faults


def _answer_with(task: Task, call: Call, index: int, result: Any) -> str | None:
    """The solution's answer when its call `index` brings `result`; None when it finds none."""
    count = -1

    def tampered(tool: str, arguments: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        return result if count == index else call(tool, arguments)

    try:
        return run_solution(task.metadata["solution"], tampered).answer
    except (SolutionError, ValueError):
        return None


def _replaced(result: Any, name: str, value: Any) -> Any:
    return {**result, name: value} if isinstance(result, dict) else value


def _others(task: Task, tool: str, reading: Reading) -> Sequence[Any]:
    """What the call could have given instead: the column's other values, both ends for a number, the other verdict."""
    value = reading.value
    if isinstance(value, int):
        return (0, 9999)
    if value in ("more", "less", "same"):
        return ("less" if value == "more" else "more",)
    if task.verifier == "query":
        known = database(task.environment, task.metadata["database"])
        table = next(table for table in known.world.tables if table.tool == tool)
        # A column's values all differ, so a few of them stand for all.
        others = [row[reading.name] for row in known.rows[table.noun] if row[reading.name] != value]
        return others[:ALTERNATIVES]
    return (f"{value}7",)
