"""Clients of the official SDK, 2.x and 1.x, in processes of their own, act in our served environment to its reward."""

import asyncio
import json
import subprocess
import sys

import pytest
from foreign import HERE, SDKS
from purse import TASKS, Purse

from baleen.agent.mcp.server import serving


async def played(python, coins, answer, *place):
    """What the foreign client says of the episode that it played."""
    process = await asyncio.create_subprocess_exec(
        python,
        str(HERE / "foreign_client.py"),
        str(answer),
        coins,
        *place,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaints.decode()
    return json.loads(out)


def check(told, want, python):
    assert told["version"].startswith("2." if python == sys.executable else "1.30")
    assert told["tools"] == ["add", "count", "crash", "sleep", "lose_wits"]
    assert told["prompt"] == ["Be thrifty.", f"Bring the purse to {want} and say how much it holds."]
    assert told["results"][:2] == [[False, f"it holds {want - 2}"], [False, f"it holds {want}"]]
    assert told["results"][2] == [True, "error: add: coins: Field required; coin: unknown argument"]
    assert told["results"][3][1].startswith("error: unknown tool 'subtract'")
    assert told["templates"] == ["episode://reward{?answer}"]
    assert told["reward"] == {"outcome": 1.0, "held": float(want), "style": None}


@pytest.mark.parametrize("python", SDKS)
def test_a_client_of_the_sdk_plays_over_http(python):
    async def body():
        async with serving(Purse, TASKS) as url:
            check(await played(python, "5+2", 7, f"{url}?task=seven"), 7, python)

    asyncio.run(body())


@pytest.mark.parametrize("python", SDKS[1:])
def test_beside_an_old_sdk_our_own_code_says_what_it_needs(python):
    source = str(HERE.parents[2] / "src")
    command = [python, "-c", "import baleen.agent.mcp.client"]
    ended = subprocess.run(command, env={"PYTHONPATH": source}, capture_output=True, text=True, check=False)
    assert "McpMissing: MCP needs the package mcp 2.x, and finds 1.30" in ended.stderr


@pytest.mark.parametrize("python", SDKS)
def test_a_client_of_the_sdk_plays_over_stdio(python):
    place = (sys.executable, str(HERE / "purse.py"), "stdio", "n-9")
    check(asyncio.run(played(python, "7+2", 9, *place)), 9, python)
