"""A record replays: the same turns in a living world, to the same verdict."""

import asyncio

import pytest
from scripted import Counter, ScriptedPolicy, task

from baleen.agent.atif import episode_to_atif
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import Sampling
from baleen.agent.records import episode_from_json, episode_to_json
from baleen.agent.replay import ReplayError, replay
from baleen.agent.user import ScriptedUser
from baleen.chat.messages import Message

SCRIPTS = {"t": ("add", "two", "done", "add", "done"), "cut": ("add", "long"), "many": ("add",) * 40}


def recorded(name="t", rules=None):
    run = run_episode(task(name, want=4), lambda _: Counter(), ScriptedPolicy(SCRIPTS), Sampling(seed=2), rules)
    return episode_from_json(episode_to_json(asyncio.run(run)))


@pytest.mark.parametrize("name", ["cut", "many"])
def test_a_record_is_lived_through_again_and_judged_the_same(name):
    episode = recorded(name)
    assert asyncio.run(replay(episode, lambda _: Counter())) == episode


def test_what_the_user_said_is_said_again():
    episode = recorded(rules=Rules(user=lambda *_: ScriptedUser(("go on",))))
    assert episode.rewards["outcome"] == 1.0
    assert asyncio.run(replay(episode, lambda _: Counter())) == episode


class Other(Counter):
    """Counts by two."""

    def add(self, by: int = 1) -> int:
        """Adds."""
        return super().add(2 * by)


def test_a_world_that_answers_otherwise_is_told():
    with pytest.raises(ReplayError, match="before turn 1 message 2"):
        asyncio.run(replay(recorded("cut"), lambda _: Other()))


def test_a_changed_world_can_be_tried_on_an_old_record():
    again = asyncio.run(replay(recorded("cut"), lambda _: Other(), exact=False))
    assert again.rewards["steps"] == 2
    assert again.status == "truncated"


class Greeting(Counter):
    """Opens with words of the assistant, as tau2-bench's worlds do."""

    async def reset(self, task):
        opening, tools = await super().reset(task)
        return [Message(role="assistant", content="Hello!"), *opening], tools


def test_words_of_the_assistant_in_the_opening_are_no_turn_of_the_policy():
    class Policy(ScriptedPolicy):
        async def complete(self, messages, tools, sampling):
            return await super().complete(messages[1:], tools, sampling)

    run = run_episode(task("cut", want=1), lambda _: Greeting(), Policy(SCRIPTS), Sampling())
    episode = asyncio.run(run)
    assert {index: one.message for index, one in episode.sampled.items()} == {
        index: episode.messages[index] for index in (2, 4)
    }
    assert asyncio.run(replay(episode, lambda _: Greeting())) == episode
    steps = episode_to_atif(episode, version="1")["steps"]
    assert ["metrics" in step for step in steps] == [False, False, True, True]
