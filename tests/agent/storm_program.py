"""1,000 episodes in a world that fails at random; run by `test_storm.py`, killed, and run again.

    python storm_program.py JOURNAL

What a task's script holds decides how its episode must end, whatever happens around it; `expected` says so.
"""

import asyncio
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import ClassVar

from scripted import ScriptedPolicy

from baleen.agent.environment import InfrastructureError
from baleen.agent.journal import Journal
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episodes
from baleen.agent.policy import Sampling
from baleen.agent.python_tool import PythonTool
from baleen.agent.sandbox import Limits
from baleen.agent.task import Task
from baleen.agent.tool_environment import ToolEnvironment
from baleen.agent.tools import Toolbox
from baleen.chat.messages import Message

EPISODES = 1000
AT_ONCE = 200
SLOW_SECONDS = 3
WEIGHTS = {"add": 60, "mistake": 10, "slow": 6, "garbage": 8, "python": 8, "kill": 4, "flaky": 4, "bug": 1, "dead": 1}
GARBAGE = ["", "\ud800", "</think>" * 50, "x" * 200_000, '{"a": [', "\x00\x1b[31m", None, float("nan"), [[[]]], b"\xff"]


def tasks():
    """The same 1,000 whenever they are asked for."""
    made = []
    for number in range(EPISODES):
        random_ = random.Random(number)
        words = random_.choices(list(WEIGHTS), list(WEIGHTS.values()), k=random_.randint(1, 6))
        words += random_.choices(["done", "long", "add"], [8, 1, 1])
        words += ["add"] * (12 - len(words)) if words[-1] == "add" else []
        made.append(
            Task(
                id=f"storm-{number}",
                family="general",
                domain="tools",
                difficulty=1,
                messages=(Message(role="user", content=f"task storm-{number}"),),
                environment="storm",
                verifier="count",
                metadata={"script": words},
            )
        )
    return made


def expected(words):
    """How an episode of this script ends."""
    for word in words[:8]:
        if word == "bug":
            return "tool_error"
        if word == "dead":
            return "infrastructure_error"
        if word == "long":
            return "truncated"
        if word == "done":
            return "finished"
    return "turn_limit"


class World:
    """The tools of one episode. What it opened and closed is counted by `open_worlds`."""

    open_worlds = 0
    flaked: ClassVar[set] = set()

    def __init__(self, task, python):
        self.task, self.python_tool, self.count, self.closed = task, python, 0, False
        World.open_worlds += 1

    async def close(self):
        """Once."""
        assert not self.closed
        self.closed = True
        World.open_worlds -= 1

    def add(self) -> int:
        """Counts."""
        self.count += 1
        return self.count

    def mistake(self) -> str:
        """The model's mistake."""
        raise ValueError("not like this")

    async def slow(self) -> str:
        """Hangs, and is cut off by the toolbox."""
        await asyncio.Event().wait()

    def garbage(self):
        """Anything."""
        return random.choice(GARBAGE)

    async def python(self) -> str:
        """A program in the sandbox."""
        said = await self.python_tool.python(f"print({self.count} + 1)")
        if said != str(self.count + 1):
            raise InfrastructureError(f"the sandbox was killed in the middle: {said}")
        return said

    async def kill(self) -> str:
        """A program in the sandbox, which dies beside it."""
        running = asyncio.ensure_future(self.python_tool.python("print(1)"))
        await asyncio.sleep(0)
        for child in children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        return await running

    def flaky(self) -> str:
        """Fails the first time that this episode comes here."""
        if self.task.id not in World.flaked:
            World.flaked.add(self.task.id)
            raise InfrastructureError("once")
        return "well"

    def bug(self) -> str:
        """Wrong code."""
        return [][0]

    async def dead(self) -> str:
        """Never answers, not even to a cut."""
        raise InfrastructureError("for ever")

    async def verify(self, episode):
        """The count is the reward."""
        return {"outcome": float(self.count > 0), "count": float(self.count)}


def children(pid):
    """Its child processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue
    return found


async def main(path):
    """Holds what is missing; prints what is left over at the end."""
    every = tasks()
    policy = ScriptedPolicy({task.id: task.metadata["script"] for task in every})
    rules = Rules(EpisodeLimits(turns=8, step_seconds=30), tries=10)
    async with PythonTool(allow_weak=True) as python:
        await python.python("1")  # what all sandboxes share is there from here on
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    async with PythonTool(Limits(memory_bytes=256 << 20), workers=2, allow_weak=True) as python:

        def environment(task):
            world = World(task, python)
            names = ("add", "mistake", "slow", "garbage", "python", "kill", "flaky", "bug", "dead")
            toolbox = Toolbox({name: getattr(world, name) for name in names}, seconds=SLOW_SECONDS)
            return ToolEnvironment(toolbox, world.verify, closing=[world.close])

        with Journal(path) as journal:
            await run_episodes(
                every, environment, policy, [Sampling()] * len(every), rules, at_once=AT_ONCE, journal=journal
            )
    left = {
        "worlds": World.open_worlds,
        "tasks": len(asyncio.all_tasks()) - 1,
        "threads": threading.active_count() - threads,
        "files": len(os.listdir("/proc/self/fd")) - files,
        "children": len(children(os.getpid())),
    }
    print(json.dumps(left))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
