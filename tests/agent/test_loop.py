"""The loop: what ends an episode, what counts, and that nothing depends on who was faster."""

import asyncio
from dataclasses import replace

import pytest
from scripted import BarrierScriptedPolicy, Counter, ScriptedPolicy, task

from baleen.agent.environment import InfrastructureError
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode, run_episodes
from baleen.agent.policy import BarrierPolicy, Completion, PolicyError, Sampling, turn_seed
from baleen.agent.tool_environment import ToolEnvironment
from baleen.agent.tools import Toolbox
from baleen.agent.tools.submit import submit_tool
from baleen.agent.user import PolicyUser, ScriptedUser
from baleen.chat.messages import FunctionCall, Message, ToolCall

SCRIPTS = {
    "plain": ("done",),
    "one": ("add", "done"),
    "two": ("two", "done"),
    "long": ("add", "long"),
    "many": ("add",) * 9,
    "crash": ("add", "crash", "done"),
    "wrong": ("nope", "done"),
    "bug": ("add", "bug", "done"),
    "hang": ("hang", "done"),
}
FOUR = Rules(EpisodeLimits(turns=4, step_seconds=0.5))


def episode(name, policy=None, max_turns=4, seed=0, index=0, rules=None, **metadata):
    made = task(name, **metadata)
    policy = policy or ScriptedPolicy(SCRIPTS)
    rules = rules or Rules(EpisodeLimits(turns=max_turns, step_seconds=0.5))
    opened = Counter.opened
    done = asyncio.run(run_episode(made, lambda _: Counter(), policy, Sampling(seed=seed), rules, index=index))
    assert Counter.opened == opened, "an environment was opened and not closed"
    return done


def test_an_answer_without_calls_finishes_and_is_judged():
    done = episode("one")
    assert done.status == "finished"
    assert [message.role for message in done.messages] == ["user", "assistant", "tool", "assistant"]
    assert done.rewards == {"outcome": 1.0, "steps": 1.0}
    assert done.scored
    assert [tool.name for tool in done.tools] == ["add", "crash", "bug", "hang"]


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
        return await run_episodes(tasks, lambda _: Counter(), policy, samplings, FOUR, at_once=at_once, on_done=done)

    together = asyncio.run(main())
    alone = [episode(name, seed=i) for i, name in enumerate(names)]
    assert [replace(e, seconds=0) for e in together] == [replace(e, seconds=0) for e in alone]
    assert sorted(heard) == list(enumerate(names))


def test_a_barrier_policy_hears_of_all_episodes_before_the_first_question():
    policy = BarrierScriptedPolicy(SCRIPTS)
    assert isinstance(policy, BarrierPolicy)
    assert not isinstance(ScriptedPolicy(SCRIPTS), BarrierPolicy)
    tasks = [task(name) for name in SCRIPTS]
    asyncio.run(run_episodes(tasks, lambda _: Counter(), policy, [Sampling()] * len(tasks), FOUR))
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
    asyncio.run(run_episodes(tasks, lambda _: Counted(), policy, [Sampling()] * 6, FOUR, at_once=2))
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
        asyncio.run(run_episodes(tasks, lambda _: Counter(), policy, [Sampling()] * 3, FOUR))


def test_each_task_needs_its_sampling():
    with pytest.raises(ValueError, match="one for each"):
        asyncio.run(run_episodes([task()], lambda _: Counter(), ScriptedPolicy(SCRIPTS), []))


def test_a_fault_of_a_tool_is_recorded_with_its_words_and_never_scored():
    broken = episode("bug")
    assert (broken.status, broken.scored, broken.rewards) == ("tool_error", False, {})
    assert "KeyError" in broken.error
    assert len(broken.completions) == 2


def test_an_environment_that_hangs_is_an_infrastructure_error():
    hung = episode("hang")
    assert (hung.status, hung.scored) == ("infrastructure_error", False)
    assert "0.5 s" in hung.error


@pytest.mark.parametrize(
    ("limits", "status", "turns"),
    [
        ({"calls": 2}, "call_limit", 3),
        ({"tokens": 6}, "token_limit", 2),
        ({"turns": 4}, "turn_limit", 4),
        ({"seconds": 0.2, "turns": 10_000}, "time_limit", None),
    ],
)
def test_each_limit_has_its_own_status_and_the_episode_is_still_judged(limits, status, turns):
    policy = ScriptedPolicy({"many": ("add",) * 10_000})
    done = episode("many", policy, rules=Rules(EpisodeLimits(**limits)))
    assert done.status == status
    assert turns in (None, len(done.completions))
    assert done.scored
    assert done.rewards["steps"] >= 1


def test_calls_beyond_the_limit_are_not_run():
    done = episode("many", rules=Rules(EpisodeLimits(calls=2)))
    assert (done.rewards["steps"], done.calls) == (2, 3)


def test_an_impossible_limit_is_refused():
    with pytest.raises(ValueError, match="turns must be positive"):
        EpisodeLimits(turns=0)


class Flaky(Counter):
    """Fails in its first `failures` lives."""

    lives = 0

    async def reset(self, task):
        Flaky.lives += 1
        if Flaky.lives <= task.metadata["failures"]:
            raise InfrastructureError("not yet")
        return await super().reset(task)

    async def close(self):
        """Nothing was counted."""


@pytest.mark.parametrize(
    ("failures", "status", "tries"), [(0, "finished", 1), (2, "finished", 3), (9, "infrastructure_error", 3)]
)
def test_what_is_not_the_models_doing_is_tried_again_with_the_same_seeds(failures, status, tries):
    Flaky.lives = 0
    policy = ScriptedPolicy(SCRIPTS)
    made = task("one", failures=failures)
    done = asyncio.run(run_episode(made, lambda _: Flaky(), policy, Sampling(seed=5), Rules(tries=3)))
    assert (done.status, done.tries) == (status, tries)
    if status == "finished":
        assert policy.seeds["one"] == [turn_seed(5, 0), turn_seed(5, 1)]


def test_a_policy_whose_server_fails_is_no_failure_of_the_model():
    class Away(ScriptedPolicy):
        async def complete(self, messages, tools, sampling):
            if len(messages) > 1:
                raise PolicyError("503")
            return await super().complete(messages, tools, sampling)

    done = episode("one", Away(SCRIPTS))
    assert (done.status, done.scored, done.error) == ("policy_error", False, "503")


def test_a_wrong_number_of_answers_is_the_environments_fault():
    class Silent(Counter):
        async def step(self, calls):
            return []

    done = asyncio.run(run_episode(task("one"), lambda _: Silent(), ScriptedPolicy(SCRIPTS), Sampling()))
    assert done.status == "tool_error"
    assert "0 answers to 1 calls" in done.error


def test_a_scripted_user_speaks_after_each_answer_and_then_is_content():
    policy = ScriptedPolicy({"talk": ("add", "done", "add", "done", "done")})
    rules = Rules(user=lambda task, environment: ScriptedUser(("go on", "go on")))
    done = episode("talk", policy, rules=rules)
    roles = [message.role[0] for message in done.messages]
    assert "".join(roles) == "uatauataua"
    assert done.status == "finished"
    assert len(done.completions) == 5


def test_a_policy_plays_the_user_and_sees_only_what_a_person_would():
    seen = []

    class Person:
        async def complete(self, messages, tools, sampling):
            seen.append((messages, sampling.seed))
            said = "more please" if len(seen) == 1 else "thanks ###DONE###"
            return Completion(Message(role="assistant", content=said))

    policy = ScriptedPolicy({"talk": ("add", "done", "done")})
    rules = Rules(user=lambda task, environment: PolicyUser(Person(), "You want more."))
    done = episode("talk", policy, rules=rules)
    assert done.status == "finished"
    assert done.messages[-2].content == "more please"
    roles = [[message.role for message in messages] for messages, _ in seen]
    assert roles == [["system", "assistant", "user"], ["system", "assistant", "user", "assistant", "user"]]
    assert all(message.reasoning_content is None for messages, _ in seen for message in messages)
    assert seen[0][1] != seen[1][1]


def test_turns_are_timed():
    done = episode("one")
    assert len(done.timings) == len(done.completions) == 2
    assert all(timing.policy_seconds > 0 for timing in done.timings)
    assert (done.timings[0].tools_seconds > 0, done.timings[1].tools_seconds) == (True, 0)


def test_what_no_tokenizer_can_read_is_replaced_where_it_comes_in():
    class Odd(Counter):
        async def step(self, calls):
            return [Message(role="tool", tool_call_id=call.id, content="鲸\ud800!") for call in calls]

    done = asyncio.run(run_episode(task("one"), lambda _: Odd(), ScriptedPolicy(SCRIPTS), Sampling()))
    assert done.messages[2].content == "鲸?!"


def test_a_submitted_answer_ends_the_episode_and_is_judged():
    toolbox = Toolbox({"add": submit_tool(int)})

    class Submits(ScriptedPolicy):
        async def complete(self, messages, tools, sampling):
            call = ToolCall(id="s", function=FunctionCall(name="add", arguments='{"answer": 42}'))
            return Completion(Message(role="assistant", tool_calls=[call]), finish_reason="tool_calls")

    def verify(episode):
        return {"outcome": float(toolbox.finished.answer == 42)}

    done = asyncio.run(run_episode(task("t"), lambda _: ToolEnvironment(toolbox, verify), Submits({}), Sampling()))
    assert (done.status, done.rewards, len(done.completions)) == ("finished", {"outcome": 1.0}, 1)
    assert done.messages[-1].role == "tool"
