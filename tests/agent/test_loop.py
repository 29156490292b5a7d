"""The loop: what ends an episode, what counts, and that nothing depends on who was faster."""

import asyncio
from dataclasses import replace

import pytest
from scripted import BarrierScriptedPolicy, Counter, ScriptedPolicy, task

from baleen.agent.loop import BarrierPolicy, run_episode, run_episodes, turn_seed
from baleen.agent.policy import Sampling

SCRIPTS = {
    "plain": ("done",),
    "one": ("add", "done"),
    "two": ("two", "done"),
    "long": ("add", "long"),
    "many": ("add",) * 9,
    "crash": ("add", "crash", "done"),
    "wrong": ("nope", "done"),
}


def episode(name, policy=None, max_turns=4, seed=0, index=0, **metadata):
    made = task(name, **metadata)
    policy = policy or ScriptedPolicy(SCRIPTS)
    return asyncio.run(run_episode(made, Counter(), policy, Sampling(seed=seed), max_turns=max_turns, index=index))


def test_an_answer_without_calls_finishes_and_is_judged():
    done = episode("one")
    assert done.status == "finished"
    assert [message.role for message in done.messages] == ["user", "assistant", "tool", "assistant"]
    assert done.rewards == {"outcome": 1.0, "steps": 1.0}
    assert done.scored
    assert [tool.name for tool in done.tools] == ["add", "crash"]


def test_a_completion_stands_behind_every_assistant_message():
    done = episode("two", want=2)
    spoken = [message for message in done.messages if message.role == "assistant"]
    assert [completion.message for completion in done.completions] == spoken
    assert [m.tool_call_id for m in done.messages if m.role == "tool"] == ["0-0", "0-1"]
    assert done.rewards["outcome"] == 1.0


def test_a_turn_that_was_cut_ends_the_episode_as_truncated():
    cut = episode("long")
    assert cut.status == "truncated"
    assert cut.scored


def test_the_turn_limit_ends_the_episode_after_its_last_call_was_run():
    stopped = episode("many", max_turns=3)
    assert stopped.status == "turn_limit"
    assert (len(stopped.completions), stopped.messages[-1].content) == (3, "3")


def test_a_mistake_of_the_model_is_told_to_the_model():
    told = episode("wrong", want=0)
    assert told.messages[2].content.startswith("error: unknown tool 'nope'")
    assert told.status == "finished"


@pytest.mark.parametrize(("name", "broken"), [("crash", None), ("one", "reset"), ("one", "verify")])
def test_a_failing_world_is_never_scored(name, broken):
    failed = episode(name, broken=broken)
    assert failed.status == "infrastructure_error"
    assert failed.rewards == {}
    assert not failed.scored


def test_what_was_said_before_the_world_failed_is_kept():
    assert len(episode("crash").completions) == 2


def test_every_turn_and_attempt_has_a_seed_of_its_own_that_repeats():
    policies = [ScriptedPolicy(SCRIPTS) for _ in range(4)]
    episode("many", policies[0])
    episode("many", policies[1])
    episode("many", policies[2], seed=1)
    episode("many", policies[3], index=1)
    seeds = [policy.seeds["many"] for policy in policies]
    assert seeds[0] == seeds[1] == [turn_seed(0, turn) for turn in range(4)]
    assert len({seed for kept in (seeds[0], seeds[2], seeds[3]) for seed in kept}) == 12
    assert all(0 <= seed < 2**63 for seed in seeds[0])


@pytest.mark.parametrize("at_once", [None, 1, 3, 99])
def test_episodes_together_are_the_same_as_one_by_one_and_in_order(at_once):
    names = [*SCRIPTS, *SCRIPTS]
    tasks = [task(name) for name in names]
    samplings = [Sampling(seed=i) for i in range(len(names))]
    heard = []

    async def main():
        policy = ScriptedPolicy(SCRIPTS)
        done = lambda i, e: heard.append((i, e.task.id))  # noqa: E731
        return await run_episodes(
            tasks, lambda _: Counter(), policy, samplings, max_turns=4, at_once=at_once, on_done=done
        )

    together = asyncio.run(main())
    alone = [episode(name, seed=i) for i, name in enumerate(names)]
    assert [replace(e, seconds=0) for e in together] == [replace(e, seconds=0) for e in alone]
    assert sorted(heard) == list(enumerate(names))


def test_a_barrier_policy_hears_of_all_episodes_before_the_first_question():
    policy = BarrierScriptedPolicy(SCRIPTS)
    assert isinstance(policy, BarrierPolicy)
    assert not isinstance(ScriptedPolicy(SCRIPTS), BarrierPolicy)
    tasks = [task(name) for name in SCRIPTS]
    asyncio.run(run_episodes(tasks, lambda _: Counter(), policy, [Sampling()] * len(tasks), max_turns=4))
    assert policy.events[: len(tasks)] == ["started"] * len(tasks)
    assert policy.events.count("started") == policy.events.count("ended") == len(tasks)


def test_no_more_episodes_run_side_by_side_than_were_asked_for():
    running, most = 0, 0

    class Counted(Counter):
        async def reset(self, task):
            nonlocal running, most
            running += 1
            most = max(most, running)
            return await super().reset(task)

        async def verify(self, episode):
            nonlocal running
            running -= 1
            return await super().verify(episode)

    policy = BarrierScriptedPolicy(SCRIPTS)
    tasks = [task(name) for name in ("one", "two", "plain", "many", "long", "wrong")]
    asyncio.run(run_episodes(tasks, lambda _: Counted(), policy, [Sampling()] * 6, max_turns=4, at_once=2))
    assert (running, most) == (0, 2)
    # The barrier counts the two places, not the six episodes.
    assert policy.events.count("started") == policy.events.count("ended") == 2


def test_a_barrier_policy_hears_the_end_of_an_episode_whose_world_failed():
    policy = BarrierScriptedPolicy(SCRIPTS)
    episode("one", policy, broken="reset")
    assert policy.events == ["started", "ended"]


def test_a_fault_in_the_code_stops_all_and_is_raised():
    tasks = [task("one"), task("unknown"), task("many")]
    policy = ScriptedPolicy(SCRIPTS)
    with pytest.raises(KeyError):
        asyncio.run(run_episodes(tasks, lambda _: Counter(), policy, [Sampling()] * 3, max_turns=4))


def test_each_task_needs_its_sampling():
    with pytest.raises(ValueError, match="one for each"):
        asyncio.run(run_episodes([task()], lambda _: Counter(), ScriptedPolicy(SCRIPTS), [], max_turns=1))
