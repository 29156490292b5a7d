"""Our ATIF files under the validator that Harbor ships."""

import json
from dataclasses import replace

import numpy as np
import pytest
from demonstrations import demonstration, tool_tasks
from peers import peer, run_peer

from baleen.agent.atif import episode_to_atif
from baleen.agent.episode import ContextEvent, Episode
from baleen.agent.policy import Completion
from baleen.chat.messages import FunctionCall, Message, ToolCall, ToolSpec
from baleen.engine.trace import Trace

pytestmark = pytest.mark.slow


def solved():
    """A task of ours, solved, with tokens and log-probabilities."""
    task = tool_tasks(1)[0]
    messages = demonstration(task)
    turns = [message for message in messages if message.role == "assistant"]
    completions = [
        Completion(
            message=turn,
            prompt_tokens=tuple(range(10 * number + 10)),
            sampled_tokens=(1, 2, 3),
            trace=Trace(logprobs=np.array([-0.5, -0.25, 0.0], dtype=np.float32)),
            finish_reason="tool_calls" if turn.tool_calls else "stop",
        )
        for number, turn in enumerate(turns)
    ]
    tools = tuple(ToolSpec(function={"name": name}) for name in task.metadata["tools"])
    rewards = {"outcome": 1.0, "format": None}
    return Episode(task, tuple(messages), tools, tuple(completions), "finished", rewards, seconds=1.5)


def said(episode, *messages):
    """`episode` with other messages, and a bare completion behind each assistant turn."""
    completions = tuple(Completion(message=message) for message in messages if message.role == "assistant")
    return replace(episode, messages=messages, completions=completions)


def call(name, arguments, id=None):
    return ToolCall(id=id, function=FunctionCall(name=name, arguments=arguments))


def episodes():
    whole = solved()
    system, user = Message(role="developer", content="Be brief."), Message(role="user", content=None)
    calls = [call("add", "{"), call("add", "[1]"), call("add", '{"a": 1}', "x"), call("add", "{}", "x")]
    asking = Message(role="assistant", content=None, tool_calls=calls)
    answers = [
        Message(role="tool", content=text, tool_call_id=each.id) for text, each in zip("abcd", calls, strict=True)
    ]
    summary = Completion(message=Message(role="assistant", content="So far so good."), sampled_tokens=(4,))
    last, opening = len(whole.messages) - 1, len(whole.task.messages)
    event = ContextEvent("summary", last, ((opening, last),), tokens_before=90, tokens_after=20, summary=summary)
    dropped = ContextEvent("discard-all", last, ((opening, last),), tokens_before=90, tokens_after=20)
    endless = Trace(logprobs=np.array([-np.inf, np.nan, -1.0], dtype=np.float32))
    unsure = replace(whole.completions[0], trace=endless, faults=("a call without its end",))
    return {
        "solved": whole,
        "mistakes": said(whole, system, user, asking, *answers, Message(role="assistant", content="")),
        "several_turns": said(whole, user, Message(role="assistant", content="Which?"), user, asking, *answers[:2]),
        "summary": replace(whole, context_events=(event,)),
        "discard": replace(whole, context_events=(dropped,)),
        "not_finite": replace(whole, completions=(unsure, *whole.completions[1:])),
        "failed": replace(said(whole, system, user), status="infrastructure_error", rewards={}, error="gone", tries=3),
    }


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    peer("harbor")
    folder = tmp_path_factory.mktemp("atif")
    for name, episode in episodes().items():
        document = episode_to_atif(episode, version="0.1", model="nano")
        (folder / f"{name}.json").write_text(json.dumps(document, allow_nan=False))
    broken = episode_to_atif(solved(), version="0.1") | {"rewards": {}}
    (folder / "broken.json").write_text(json.dumps(broken))
    done = run_peer("harbor", ["-m", "atif_check", folder], folder=folder)
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", sorted(episodes()))
def test_harbors_validator_accepts_our_files(checked, name):
    assert checked[1][f"{name}.json"] == []


def test_harbors_validator_sees_a_key_that_is_not_atifs(checked):
    assert checked[1]["broken.json"] == ["trajectory.rewards: unexpected field (not part of ATIF schema)"]


def test_the_validators_command_accepts_an_episode_of_ours(checked):
    folder = checked[0]
    good = run_peer("harbor", ["-m", "harbor.utils.trajectory_validator", "solved.json"], folder=folder)
    assert "is valid" in good.stdout
