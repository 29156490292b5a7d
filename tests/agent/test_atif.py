"""ATIF documents: nothing an episode says is lost, and the document is JSON whatever a model wrote.

That Harbor's own validator takes them is held in `adapters/test_atif_validator.py`.
"""

import json
from dataclasses import replace

import pytest
from scripted import task

from baleen.agent.atif import AtifError, episode_to_atif
from baleen.agent.episode import ContextEvent, Episode
from baleen.agent.policy import Completion
from baleen.chat.messages import FunctionCall, Message, ToolCall


def calling(*arguments):
    return [ToolCall(id=f"c{i}", function=FunctionCall(name="look", arguments=a)) for i, a in enumerate(arguments)]


def an_episode(*arguments):
    turn = Message(role="assistant", reasoning_content="hm", tool_calls=calling(*arguments))
    last = Message(role="assistant", content="done")
    results = [Message(role="tool", tool_call_id=f"c{i}", content=f"r{i}") for i in reversed(range(len(arguments)))]
    return Episode(
        task("t"),
        (Message(role="system", content="be good"), Message(role="user", content="look"), turn, *results, last),
        (),
        (Completion(turn, (1, 2), (3, 4)), Completion(last, (1, 2, 3, 4, 5), (6,))),
        "finished",
        {"outcome": 1.0, "style": None},
    )


def test_results_stand_with_the_calls_that_asked_for_them():
    document = episode_to_atif(an_episode("{}", '{"a": 1}'), version="1", model="whale")
    assert [step["source"] for step in document["steps"]] == ["system", "user", "agent", "agent"]
    assert [step["step_id"] for step in document["steps"]] == [1, 2, 3, 4]
    agent = document["steps"][2]
    assert [call["arguments"] for call in agent["tool_calls"]] == [{}, {"a": 1}]
    assert {r["source_call_id"]: r["content"] for r in agent["observation"]["results"]} == {"c0": "r0", "c1": "r1"}
    assert agent["metrics"]["completion_token_ids"] == [3, 4]
    assert document["extra"]["rewards"] == {"outcome": 1.0, "style": None}
    assert document["final_metrics"] == {"total_prompt_tokens": 7, "total_completion_tokens": 3, "total_steps": 4}


@pytest.mark.parametrize("arguments", ["not json", "[1]", '{"a": NaN}', '{"a": 1e999}', '{"a":' * 2000])
def test_arguments_that_are_no_json_object_are_kept_as_text(arguments):
    document = episode_to_atif(an_episode(arguments), version="1")
    (call,) = document["steps"][2]["tool_calls"]
    assert (call["arguments"], call["extra"]["arguments_text"]) == ({}, arguments)
    json.dumps(document, allow_nan=False)


def test_a_summary_is_shown_where_the_policy_saw_it():
    event = ContextEvent("summary", 4, ((2, 4),), 100, 10, Completion(Message(role="assistant", content="seen it")))
    document = episode_to_atif(replace(an_episode("{}"), context_events=(event,)), version="1")
    notes = document["steps"][3]
    assert notes["source"] == "user"
    assert "seen it" in notes["message"]
    assert notes["extra"]["context_management"]["strategy"] == "summary"


def test_what_atif_cannot_hold_is_refused():
    with pytest.raises(AtifError, match="nothing was said"):
        episode_to_atif(replace(an_episode("{}"), messages=()), version="1")
