"""A conversation in the terminal: thinking is shown apart, tools really run, the history grows as it was."""

import asyncio
import io

import pytest
from rich.console import Console

from baleen.agent.policy import Completion, Sampling
from baleen.chat.messages import FunctionCall, Message, ToolCall
from baleen.synthesis.worlds import database
from baleen.terminal import TerminalError, chat, talk


class Asks:
    """Calls the given tools in its first turn, then answers with the last result."""

    def __init__(self, *calls):
        self.calls = [
            ToolCall(id=str(index), function=FunctionCall(name=name, arguments=arguments))
            for index, (name, arguments) in enumerate(calls)
        ]
        self.offered = set()

    async def complete(self, messages, tools, sampling):
        self.offered = {tool.name for tool in tools}
        if messages[-1].role == "user":
            message = Message(role="assistant", reasoning_content="I look it up [b]", tool_calls=self.calls)
            return Completion(message=message, finish_reason="tool_calls")
        return Completion(message=Message(role="assistant", content=f"It is {messages[-1].content}."))


def converse(policy, *said, world=None):
    stream = io.StringIO()
    left = [*said, None]
    messages = asyncio.run(talk(policy, lambda: left.pop(0), Console(file=stream, width=100), Sampling(), world))
    return messages, stream.getvalue()


def test_python_really_runs_and_the_answer_follows():
    messages, shown = converse(Asks(("python", '{"code": "print(6 * 7)"}')), "what is 6 * 7?")
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[-1].content == "It is 42."
    assert "I look it up [b]" in shown
    assert "It is 42." in shown


def test_an_environment_offers_its_own_tools_and_no_others():
    world = database("library", 1)
    table = world.world.tables[0]
    row = world.rows[table.noun][0]
    arguments = "{" + ", ".join(f'"{key}": "{row[key]}"' for key in table.by) + "}"
    policy = Asks((table.tool, arguments))
    messages, _ = converse(policy, "look it up", world=world)
    assert policy.offered == set(world.world.tool_names)
    assert all(str(row[field.name]) in messages[2].content for field in table.fields)


def test_a_new_conversation_forgets_and_quit_ends():
    policy = Asks(("nothing", "{}"))
    messages, _ = converse(policy, "one", "/new", "two", "/quit", "three")
    assert [message.content for message in messages if message.role == "user"] == ["two"]
    assert "unknown tool" in messages[2].content


def test_an_unknown_environment_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(TerminalError, match=r"no environment 'libary'; known are library"):
        chat(tmp_path, thinking=True, environment="libary")
