"""The measurement over tau2-bench's tasks: what it counts, and that it prints and writes what it counted."""

import asyncio
import json

import pytest

from baleen.agent.adapters.tau2_package import Tau2Missing, tau2_module
from baleen.agent.policy import Completion, Sampling
from baleen.benchmarks.tau2 import ReasoningWatch, main
from baleen.chat.messages import FunctionCall, Message, ToolCall


class Answers:
    async def complete(self, messages, tools, sampling):
        return Completion(message=Message(role="assistant", content="yes"))


def watched(*messages):
    watch = ReasoningWatch(Answers())
    asyncio.run(watch.complete(messages, [], Sampling()))
    return dict(watch.counted)


def looks(thought):
    call = ToolCall(id="1", function=FunctionCall(name="look"))
    turn = Message(role="assistant", reasoning_content=thought, tool_calls=[call])
    return turn, Message(role="tool", tool_call_id="1", content="a bird")


def test_reasoning_over_tool_results_is_counted_kept_and_before_a_user_turn_dropped():
    first, second = looks("<first>"), looks("<second>")
    asks, again = Message(role="user", content="what?"), Message(role="user", content="and now?")
    assert watched(asks, *first, *second) == {"kept": 2}
    assert watched(asks, *first, again, *second) == {"dropped": 1, "kept": 1}


def test_reasoning_that_a_prompt_shows_against_the_rule_is_counted_wrong():
    leaks = Message(role="user", content="you thought <first>")
    assert watched(Message(role="user", content="what?"), *looks("<first>"), leaks) == {"wrong": 1}


def test_the_measurement_prints_who_got_what_and_writes_it(tmp_path, capsys):
    try:
        tau2_module("registry")
    except Tau2Missing as error:
        pytest.skip(f"needs tau2-bench: {error}")
    file = tmp_path / "rows.json"
    assert main(["--domains", "retail", "--most", "2", "--json", str(file)]) == 0
    rows = {row["agent"]: row for row in json.loads(file.read_text())}
    assert (rows["gold"]["full"], rows["gold"]["tasks"]) == (2, 2)
    assert rows["silent"]["full"] == 0
    assert rows["gold"]["reasoning_kept"] > 0
    assert rows["gold"]["reasoning_dropped"] > 0
    assert not any(row["failed"] for row in rows.values())
    assert "2 of 2" in capsys.readouterr().out
