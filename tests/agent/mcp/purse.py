"""A small real environment for the protocol's tests, and a program that serves it.

python purse.py stdio [TASK]      python purse.py http [IDLE_SECONDS]

Where `PURSE_LOG` names a file, every closing adds a line to it.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import ClassVar

from baleen.agent.environment import InfrastructureError
from baleen.agent.mcp.server import serve_environment
from baleen.agent.mcp.sessions import SessionLimits
from baleen.agent.task import Task
from baleen.agent.tools import Toolbox
from baleen.chat.messages import Message


def purse_task(name, want):
    return Task(
        id=name,
        family="general",
        domain="tools",
        difficulty=1,
        messages=(
            Message(role="system", content="Be thrifty."),
            Message(role="user", content=f"Bring the purse to {want} and say how much it holds."),
        ),
        environment="purse",
        verifier="purse",
        metadata={"want": want},
    )


TASKS = [purse_task("three", 3), purse_task("seven", 7), *(purse_task(f"n-{n}", n) for n in range(20))]


class Purse:
    """Coins go in. Right is who brought it to what the task wants, and says so."""

    closed: ClassVar[list[str]] = []

    def __init__(self, task):
        self.task = task

    async def reset(self, task):
        if task.metadata.get("broken"):
            raise InfrastructureError("no purse today")
        self.held = 0
        self.toolbox = Toolbox([self.add, self.count, self.crash, self.sleep, self.lose_wits])
        return list(task.messages), self.toolbox.specs

    async def step(self, calls):
        return list(await asyncio.gather(*(self.toolbox.call(call) for call in calls)))

    async def verify(self, episode):
        answer = episode.messages[-1].content
        right = self.held == self.task.metadata["want"] and answer == str(self.held)
        return {"outcome": float(right), "held": float(self.held), "style": None}

    async def close(self):
        await asyncio.sleep(0.01)  # what is closed takes a moment, and must be given it
        self.closed.append(self.task.id)
        if "PURSE_LOG" in os.environ:
            with Path(os.environ["PURSE_LOG"]).open("a") as log:
                log.write(f"closed {self.task.id} {self.held}\n")

    async def add(self, coins: int) -> str:
        """Puts coins in."""
        if coins < 0:
            raise ValueError("nothing is taken out here")
        self.held += coins
        print("a tool that prints must not break the wire")
        return f"it holds {self.held}"

    async def count(self) -> int:
        """Counts the coins."""
        return self.held

    async def sleep(self, seconds: float) -> str:
        """Waits."""
        await asyncio.sleep(seconds)
        return "awake"

    async def crash(self) -> str:
        """The world fails."""
        raise InfrastructureError("the purse burnt")

    async def lose_wits(self) -> str:
        """A fault of the tool."""
        raise KeyError("inside")


async def main(way, argument=None):
    if way == "stdio":
        if await serve_environment(Purse, TASKS, task=argument):
            os._exit(0)
    else:
        limits = SessionLimits(idle_seconds=float(argument)) if argument else None
        await serve_environment(
            Purse, TASKS, transport="http", limits=limits, started=lambda url: print(url, flush=True)
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
