"""MCP servers as an environment: episodes of the loop, their worlds at the other end of a wire, to their rewards."""

import asyncio
import sys

import pytest
from calls import tool_call
from foreign import HERE
from purse import TASKS, Purse, purse_task

from baleen.agent.environment import InfrastructureError
from baleen.agent.episode import Episode
from baleen.agent.loop import run_episode, run_episodes
from baleen.agent.mcp.client import HttpServer, McpTools, StdioServer
from baleen.agent.mcp.environment import McpEnvironment, served_reward
from baleen.agent.mcp.server import serving
from baleen.agent.policy import Completion, Sampling
from baleen.chat.messages import Message

FOREIGN = StdioServer(sys.executable, [str(HERE / "foreign_server.py"), "stdio"])
MANY = [task for task in TASKS if task.id.startswith("n-")]


class Thrifty:
    """Adds coins one by one in parallel calls, counts them, and says the count; or what it was told to say."""

    def __init__(self, answer=None, first="add"):
        self.answer, self.first = answer, first

    async def complete(self, messages, tools, sampling):
        want = int("".join(filter(str.isdigit, messages[-1 if len(messages) == 2 else 1].content)))
        turn = sum(message.role == "assistant" for message in messages)
        calls = []
        if turn == 0 and self.first == "add":
            calls = [tool_call("add", coins=1).model_copy(update={"id": f"c{n}"}) for n in range(want)]
        elif turn == 0:
            calls = [tool_call(self.first)]
        elif turn == 1:
            calls = [tool_call("count")]
        content = None if calls else self.answer or messages[-1].content
        reason = "tool_calls" if calls else "stop"
        return Completion(Message(role="assistant", content=content, tool_calls=calls), finish_reason=reason)


def over(url):
    """An environment whose world is served at `url`."""
    return lambda task: McpEnvironment(lambda task: {"purse": HttpServer(f"{url}?task={task.id}")}, served_reward)


def test_an_episode_over_mcp_is_the_episode_itself():
    async def body():
        here = await run_episode(TASKS[1], Purse, Thrifty(), Sampling())
        async with serving(Purse, TASKS) as url:
            there = await run_episode(TASKS[1], over(url), Thrifty(), Sampling())
            wrong = await run_episode(TASKS[1], over(url), Thrifty(answer="8"), Sampling())
            failing = await run_episode(TASKS[1], over(url), Thrifty(first="crash"), Sampling())
        assert there.status == here.status == "finished"
        assert there.rewards == here.rewards == {"outcome": 1.0, "held": 7.0, "style": None}
        assert there.tools == here.tools
        assert sorted(m.content or "" for m in there.messages) == sorted(m.content or "" for m in here.messages)
        assert wrong.rewards["outcome"] == 0.0
        assert (failing.status, failing.scored) == ("infrastructure_error", False)
        assert "the environment failed" in failing.error

    asyncio.run(body())


def test_twenty_episodes_at_once_over_one_server_reach_their_own_rewards():
    async def body():
        Purse.closed.clear()
        async with serving(Purse, TASKS) as url:
            episodes = await run_episodes(MANY[1:] + MANY[1:2], over(url), Thrifty(), [Sampling()] * 20)
            assert [episode.rewards["outcome"] for episode in episodes] == [1.0] * 20
            assert [episode.rewards["held"] for episode in episodes] == [*map(float, range(1, 20)), 1.0]
            async with asyncio.timeout(10):
                while len(Purse.closed) < 20:
                    await asyncio.sleep(0.02)

    asyncio.run(body())


def test_an_episode_that_did_not_finish_has_no_answer():
    async def body():
        async with serving(Purse, TASKS) as url, McpTools.http(url) as tools:
            await tools.call(tool_call("add", coins=3))
            said = (*TASKS[0].messages, Message(role="assistant", content="3"))
            cut = Episode(task=TASKS[0], messages=said, tools=(), completions=(), status="truncated")
            assert (await served_reward(cut, {"purse": tools}))["outcome"] == 0.0

    asyncio.run(body())


def test_a_server_that_forgot_the_session_is_an_infrastructure_error():
    async def body():
        async with serving(Purse, TASKS) as url:
            tools = McpTools.http(url)
            await tools.open()
            assert (await tools.call(tool_call("add", coins=1))).content == "it holds 1"
        async with serving(Purse, TASKS, port=int(url.split(":")[2].split("/")[0])):
            with pytest.raises(InfrastructureError, match="no such session"):
                await tools.call(tool_call("add", coins=1))
            await tools.close()

    asyncio.run(body())


def test_our_servers_prompt_comes_back_with_its_roles():
    async def body():
        async with serving(Purse, TASKS) as url, McpTools.http(f"{url}?task=seven") as tools:
            assert await tools.prompt() == list(TASKS[1].messages)
            assert await tools.prompt("seven") == list(TASKS[1].messages)
            with pytest.raises(InfrastructureError, match="no prompt 'three'"):
                await tools.prompt("three")

    asyncio.run(body())


def test_tools_of_several_servers_live_together_and_clashes_are_told_apart():
    async def no_verdict(episode, sessions):
        return {"outcome": None, "servers": float(len(sessions))}

    async def body():
        async with serving(Purse, TASKS) as url:
            servers = {"left": FOREIGN, "right": FOREIGN, "purse": HttpServer(url)}
            environment = McpEnvironment(servers, no_verdict)
            opening, specs = await environment.reset(TASKS[0])
            names = [spec.name for spec in specs]
            assert opening == list(TASKS[0].messages)
            assert {"left_push", "right_push", "add", "count"} <= set(names)
            assert "push" not in names
            assert len(set(names)) == len(names)
            answers = await environment.step(
                [
                    tool_call("left_push", item="a"),
                    tool_call("right_push", item="b"),
                    tool_call("add", coins=2),
                    tool_call("push", item="c"),
                    tool_call("left_push", items=1),
                ]
            )
            assert [answer.name for answer in answers] == ["left_push", "right_push", "add", "push", "left_push"]
            assert [answer.content for answer in answers[:3]] == ["a", "b", "it holds 2"]
            assert answers[3].content.startswith("error: unknown tool 'push'; tools: left_echo, ")
            assert answers[4].content.startswith("error: ")
            assert await environment.verify(None) == {"outcome": None, "servers": 3.0}
            await environment.reset(TASKS[0])
            [fresh] = await environment.step([tool_call("left_push", item="z")])
            assert fresh.content == "z"
            await environment.close()
            await environment.close()
            [gone] = await environment.step([tool_call("add", coins=1)])
            assert gone.content == "error: unknown tool 'add'; tools: none"

    asyncio.run(body())


def test_one_server_that_gives_no_session_leaves_none_of_the_others_open():
    async def body():
        Purse.closed.clear()
        async with serving(Purse, TASKS) as url:
            servers = {"purse": HttpServer(url), "gone": StdioServer("/no/such/program")}
            environment = McpEnvironment(servers, served_reward)
            with pytest.raises(InfrastructureError, match="/no/such/program"):
                await environment.reset(purse_task("three", 3))
            await environment.close()
            async with asyncio.timeout(10):
                while Purse.closed != ["three"]:
                    await asyncio.sleep(0.02)

    asyncio.run(body())


def test_a_verdict_without_messages_is_asked_for_and_without_a_session_is_an_infrastructure_error():
    nothing = Episode(task=TASKS[0], messages=(), tools=(), completions=(), status="finished", seconds=0.0)

    async def body():
        async with serving(Purse, TASKS) as url, McpTools.http(url) as tools:
            assert (await served_reward(nothing, {"purse": tools}))["outcome"] == 0.0
        with pytest.raises(InfrastructureError, match="no session"):
            await served_reward(nothing, {})

    asyncio.run(body())


def test_a_server_that_knows_only_the_sessionless_protocol_is_spoken_to_in_it():
    program = HERE / "modern_server.py"

    async def body():
        async with McpTools.stdio(sys.executable, [str(program)]) as tools:
            assert [spec.name for spec in tools.specs] == ["era"]
            assert (await tools.call(tool_call("era"))).content == "2026-07-28"

    asyncio.run(body())
