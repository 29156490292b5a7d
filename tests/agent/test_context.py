"""Context management: what goes, when, and that the record stays whole."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import task

from baleen.agent.context import SUM_UP, Context, ContextError, ContextManagement, fewest_steps, notes_message
from baleen.agent.episode import Episode
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import Completion, Sampling
from baleen.agent.records import episode_from_json, episode_to_json
from baleen.agent.tool_environment import ToolEnvironment
from baleen.agent.tools import Toolbox
from baleen.chat.messages import FunctionCall, Message, ToolCall


class Talker:
    """Calls `look` until it was asked `turns` times; a message is as many tokens as its words."""

    def __init__(self, turns=8):
        self.turns, self.seen, self.calls = turns, [], 0

    async def count_tokens(self, messages, tools, sampling):
        return sum(len((message.content or "x").split()) for message in messages)

    async def complete(self, messages, tools, sampling):
        self.seen.append(list(messages))
        if messages[-1].content == SUM_UP:
            return Completion(Message(role="assistant", content=f"looked {self.calls} times"), sampled_tokens=(1, 2))
        self.calls += 1
        if self.calls > self.turns:
            return Completion(Message(role="assistant", content="done"), sampled_tokens=(1,))
        call = ToolCall(id=f"c{self.calls}", function=FunctionCall(name="look"))
        return Completion(Message(role="assistant", tool_calls=[call]), sampled_tokens=(1,), finish_reason="tool_calls")


def look() -> str:
    """Ten words."""
    return "one two three four five six seven eight nine ten"


def held(strategy, window=50, turns=8):
    policy = Talker(turns)
    rules = Rules(EpisodeLimits(turns=40), ContextManagement(strategy, window=window))
    environment = lambda _: ToolEnvironment(Toolbox([look]), lambda episode: {"outcome": 1.0})  # noqa: E731
    return asyncio.run(run_episode(task("t"), environment, policy, Sampling(), rules)), policy


@pytest.mark.parametrize("strategy", ["summary", "discard-75", "discard-all"])
def test_no_prompt_is_longer_than_the_trigger_and_the_record_is_whole(strategy):
    episode, policy = held(strategy)
    asked = [
        asyncio.run(policy.count_tokens(messages, (), None))
        for messages in policy.seen
        if messages[-1].content != SUM_UP
    ]
    assert max(asked) <= 40
    assert episode.context_events
    assert [message.role for message in episode.messages] == ["user"] + ["assistant", "tool"] * 8 + ["assistant"]
    for event in episode.context_events:
        assert event.tokens_before > 40 >= event.tokens_after


def test_none_leaves_everything_in_the_context():
    episode, policy = held("none")
    assert not episode.context_events
    assert [len(messages) for messages in policy.seen] == [1 + 2 * i for i in range(9)]


def test_discard_all_starts_over_knowing_the_task_alone():
    episode, policy = held("discard-all")
    first = episode.context_events[0]
    assert (first.at_message, first.dropped) == (9, ((1, 9),))
    assert [message.content for message in policy.seen[4]] == ["task t"]


def test_discard_75_drops_the_oldest_three_quarters_of_the_rounds():
    episode, policy = held("discard-75")
    first = episode.context_events[0]
    assert (first.at_message, first.dropped) == (9, ((1, 7),))
    assert [m.tool_call_id for m in policy.seen[4] if m.role == "tool"] == ["c4"]


def test_a_summary_takes_the_place_of_what_it_sums_up():
    episode, policy = held("summary")
    event = episode.context_events[0]
    after = policy.seen[5]
    assert after == [Message(role="user", content="task t"), notes_message(event.summary)]
    assert "looked 4 times" in after[1].content
    assert all(message.content != SUM_UP for message in episode.messages)
    # The second summary stands alone: it was written with the first before its writer's eyes.
    assert sum("Earlier work" in (m.content or "") for m in policy.seen[-1]) == 1


def test_events_survive_the_way_through_a_record():
    episode, _ = held("summary")
    assert episode_from_json(episode_to_json(episode)) == episode


def test_a_task_that_alone_fills_the_window_is_left_alone():
    context = Context(ContextManagement("discard-all", window=4), 1)
    opening = [Message(role="user", content="a b c d e f g h")]
    assert asyncio.run(context.fit(opening, [], Talker(), Sampling())) == opening
    assert context.events == []


def test_a_policy_that_cannot_count_is_told():
    class Blind:
        async def complete(self, messages, tools, sampling):
            return Completion(Message(role="assistant", content=""))

    context = Context(ContextManagement("summary", window=4), 0)
    with pytest.raises(ContextError, match="count_tokens"):
        asyncio.run(context.fit([], [], Blind(), Sampling()))


@pytest.mark.parametrize("made", [lambda: ContextManagement("discard-half"), lambda: ContextManagement(window=0)])
def test_what_makes_no_sense_is_refused(made):
    with pytest.raises(ContextError):
        made()


@given(st.sampled_from(["summary", "discard-75", "discard-all"]), st.integers(15, 200), st.integers(0, 30))
def test_dropping_keeps_calls_with_their_results_and_drops_nothing_twice(strategy, window, turns):
    episode, policy = held(strategy, window, turns)
    assert episode.status == "finished"
    for messages in policy.seen:
        called = [call.id for message in messages for call in message.tool_calls]
        answered = [message.tool_call_id for message in messages if message.role == "tool"]
        assert called == answered
    dropped = [i for event in episode.context_events for start, stop in event.dropped for i in range(start, stop)]
    assert len(dropped) == len(set(dropped))


def test_of_parallel_attempts_the_finished_one_with_the_fewest_steps_is_taken():
    def attempt(turns, status):
        completions = (Completion(Message(role="assistant", content="x")),) * turns
        return Episode(task("t"), (), (), completions, status)

    attempts = [attempt(1, "turn_limit"), attempt(5, "finished"), attempt(3, "finished"), attempt(3, "finished")]
    assert fewest_steps(attempts) is attempts[2]
    assert fewest_steps(attempts[:1]) is attempts[0]
    with pytest.raises(ContextError):
        fewest_steps([])
