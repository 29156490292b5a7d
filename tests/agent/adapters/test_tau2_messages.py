"""Conversations in tau2-bench's shape: what its evaluator runs again must be what was run. Needs no tau2-bench."""

import json

from hypothesis import given
from hypothesis import strategies as st

from baleen.agent.adapters.tau2_messages import UserAction, arguments_of, says_nothing, tool_specs, trajectory
from baleen.chat.messages import FunctionCall, Message, ToolCall

ARGUMENTS = st.sampled_from(['{"a": 1}', "{}", "[1]", "", "{", '"text"'])
ID = st.sampled_from([None, "x", "y"])


def call(name="look", arguments="{}", id="1"):
    return ToolCall(id=id, function=FunctionCall(name=name, arguments=arguments))


def answer(text, id="1"):
    return Message(role="tool", tool_call_id=id, content=text)


@st.composite
def turns(draw):
    """A turn with some calls and its answers, or somebody's words."""
    if draw(st.booleans()):
        return [Message(role=draw(st.sampled_from(["user", "assistant"])), content=draw(st.text(min_size=1)))]
    calls = [call(f"tool{n}", draw(ARGUMENTS), draw(ID)) for n in range(draw(st.integers(1, 3)))]
    asks = Message(role="assistant", content=draw(st.sampled_from([None, "", "well"])), tool_calls=calls)
    return [asks, *(answer(f"result of {one.function.name}", one.id) for one in calls)]


@given(st.lists(turns(), max_size=5))
def test_every_call_that_ran_is_followed_by_its_own_result(parts):
    done = trajectory([message for part in parts for message in part])
    waiting, ran = [], []
    for one in done:
        if one["role"] == "tool":
            expected = waiting.pop(0)
            ran.append(expected["name"])
            assert (one["id"], one["content"]) == (expected["id"], f"result of {expected['name']}")
        else:
            assert not waiting, "a turn begins before the last one's calls are answered"
            waiting = list(one["tool_calls"] or [])
    assert not waiting
    assert ran == [
        one.function.name
        for part in parts
        for message in part
        for one in message.tool_calls
        if arguments_of(one) is not None
    ]


def test_what_was_never_an_object_is_left_out_with_its_answer():
    messages = [
        Message(role="assistant", tool_calls=[call("first", '{"a": 1}', "1"), call("second", "[1]", "2")]),
        answer("done", "1"),
        answer("error", "2"),
    ]
    assert [one.get("content") for one in trajectory(messages)] == [None, "done"]
    assert [one["name"] for one in trajectory(messages)[0]["tool_calls"]] == ["first"]


def test_empty_text_is_a_call_without_arguments():
    assert arguments_of(call(arguments=" ")) == {}


def test_a_turn_of_which_nothing_ran_and_that_says_nothing_is_no_turn():
    asks = Message(role="assistant", tool_calls=[call(arguments="{")])
    assert trajectory([asks, answer("error")]) == []


def test_reasoning_and_the_policy_stay_behind():
    messages = [
        Message(role="system", content="the policy"),
        Message(role="user", content="hello"),
        Message(role="assistant", content="hi", reasoning_content="secret"),
    ]
    done = trajectory(messages)
    assert [one["role"] for one in done] == ["user", "assistant"]
    assert "secret" not in json.dumps(done)
    assert "policy" not in json.dumps(done)


def test_what_the_user_did_stands_before_the_message_it_led_to():
    messages = [
        Message(role="user", content="help"),
        Message(role="assistant", content="press it"),
        Message(role="user", content="pressed"),
    ]
    action = UserAction(2, Message(role="assistant", tool_calls=[call("press")]), (answer("beep"),))
    done = trajectory(messages, [action])
    assert [one["role"] for one in done] == ["user", "assistant", "user", "tool", "user"]
    assert done[2]["tool_calls"][0]["requestor"] == done[3]["requestor"] == "user"


def test_words_beside_calls_are_words_and_neither_is_nothing():
    assert not says_nothing(Message(role="assistant", content="", tool_calls=[call()]))
    assert not says_nothing(Message(role="assistant", content="hm"))
    assert says_nothing(Message(role="assistant", content=" \n", reasoning_content="I think"))
    assert not says_nothing(Message(role="user", content=""))


def test_a_tool_is_offered_with_its_own_schema():
    class Theirs:
        openai_schema = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}  # noqa: RUF012

    (spec,) = tool_specs([Theirs()])
    assert (spec.name, spec.function["parameters"]) == ("look", {"type": "object"})
