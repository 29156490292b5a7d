"""`baleen env serve`: an environment of ours, or the tasks of a file, over the Model Context Protocol.

Its tasks are made from a seed like those of training, so the same command serves the same ones.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from baleen.agent.task import Task

SYNTHESISED = 400
"""Tasks that are made to find those of one environment among them."""


class NoSuchEnvironment(LookupError):
    """No task of that environment; the message names the environments that there are."""


def tasks_of(subject: str, seed: int) -> list[Task]:
    """The tasks of a file that `baleen synth` wrote, or those of the environment of that name. Raises
    `NoSuchEnvironment`, and `FileNotFoundError` for a file that is missing."""
    from baleen.synthesis.catalogue import TaskSet, synthesise

    if subject.endswith(".jsonl"):
        if not Path(subject).is_file():
            raise FileNotFoundError(f"no file of tasks at {subject}; `baleen synth --out DIR` writes one")
        return list(TaskSet.load(subject).tasks)
    made = synthesise(seed, train=SYNTHESISED, test=0, unseen=SYNTHESISED // 10).tasks
    found = [task for task in made if task.environment == subject]
    if not found:
        known = ", ".join(sorted({task.environment for task in made}))
        raise NoSuchEnvironment(f"no environment {subject!r}; with this seed there are {known}")
    return found


def serve(subject: str, *, task: str | None, seed: int, transport: Literal["stdio", "http"], port: int) -> None:
    """Serves until the client leaves or a signal comes. Over stdio nothing but the protocol goes to standard output."""
    asyncio.run(_serve(tasks_of(subject, seed), task, transport, port))


async def _serve(tasks: Sequence[Task], task: str | None, transport: Literal["stdio", "http"], port: int) -> None:
    from baleen.agent.mcp.server import serve_environment
    from baleen.agent.python_tool import PythonTool
    from baleen.synthesis.environments import make_environment

    def started(url: str) -> None:
        print(f"baleen serves {len(tasks)} tasks on {url}, such as {url}?task={tasks[0].id}", file=sys.stderr)

    async with PythonTool() as python:
        still_reading = await serve_environment(
            lambda each: make_environment(each, python),
            tasks,
            transport=transport,
            task=task,
            port=port,
            started=started,
        )
    if still_reading:
        sys.stderr.flush()
        os._exit(0)
