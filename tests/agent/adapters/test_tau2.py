"""tau2-bench's own tasks, tools and evaluator behind our environment. Skipped where no checkout is named."""

import asyncio
import json

import pytest

from baleen.agent.adapters.tau2 import Tau2Environment, gold_actions, tau2_rewards, tau2_tasks, tau2_user
from baleen.agent.adapters.tau2_package import Tau2Missing, tau2_domain, tau2_module
from baleen.agent.adapters.tau2_user import MOST_ACTIONS, Tau2User
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episode
from baleen.agent.policy import Completion, Sampling
from baleen.agent.user import ScriptedUser
from baleen.benchmarks.tau2 import OPENING, GoldPlan, IdleAgent
from baleen.chat.encoding import encode
from baleen.chat.messages import FunctionCall, Message, ToolCall


@pytest.fixture(autouse=True, scope="module")
def bench():
    try:
        return tau2_module("registry").registry
    except Tau2Missing as error:
        pytest.skip(f"needs tau2-bench: {error}")


def greets(world):
    return ScriptedUser((OPENING,))


def tasks(domain):
    return {task.metadata["tau2"]["id"]: task for task in tau2_tasks(domain)}


def theirs(task):
    return tau2_domain(task.metadata["tau2"]["domain"], "base")[task.metadata["tau2"]["id"]]


def play(task, policy, user=greets, **limits):
    rules = Rules(limits=EpisodeLimits(**limits), user=tau2_user)
    return asyncio.run(run_episode(task, lambda task: Tau2Environment(user), policy, Sampling(), rules))


def plan_of(task, **instead):
    """What does all of the task's reference actions and says what is to be told, but for what is given instead."""

    def changes(name):
        return not name.startswith(("get_", "find_", "list_"))

    mine = theirs(task).model_copy(deep=True)
    for field, value in instead.items():
        setattr(mine.evaluation_criteria, field, value)
    return GoldPlan(mine, changes)


def call(name, arguments="{}", id="1"):
    return ToolCall(id=id, function=FunctionCall(name=name, arguments=arguments))


class Says:
    """A policy that gives these turns, one after the other, and notes what it saw."""

    def __init__(self, *turns):
        self.turns, self.saw = list(turns), []

    async def complete(self, messages, tools, sampling):
        self.saw.append((list(messages), list(tools)))
        turn = self.turns.pop(0)
        message = turn if isinstance(turn, Message) else Message(role="assistant", content=turn)
        return Completion(message=message)


def first_with_a_change(domain, bench):
    toolkit = bench.get_env_constructor(domain)().tools
    for task in tau2_tasks(domain):
        actions = gold_actions(theirs(task))
        if actions and toolkit.has_tool(actions[-1].name) and toolkit.tool_mutates_state(actions[-1].name):
            return task, actions
    raise AssertionError(f"{domain} changes nothing")


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_the_reference_actions_have_full_reward_and_without_the_last_one_none(domain, bench):
    if domain == "telecom":
        task = tau2_tasks(domain)[0]
        actions = gold_actions(theirs(task))
    else:
        task, actions = first_with_a_change(domain, bench)
    whole, cut = plan_of(task), plan_of(task, actions=actions[:-1])
    done, less = play(task, whole, whole.user), play(task, cut, cut.user)
    assert (done.status, done.rewards["outcome"]) == ("finished", 1.0)
    assert (less.status, less.rewards["outcome"]) == ("finished", 0.0)


def test_the_parts_are_tau2_benchs_own_and_what_needs_a_judge_is_not_scored():
    judged = next(task for task in tau2_tasks("retail") if theirs(task).evaluation_criteria.nl_assertions)
    plan = plan_of(judged)
    rewards = play(judged, plan, plan.user).rewards
    assert rewards == {"outcome": 1.0, "db": 1.0, "nl_assertion": None}
    assert play(tau2_tasks("airline")[0], IdleAgent("refuses")).rewards == {
        "outcome": 1.0,
        "db": 1.0,
        "communicate": 1.0,
    }


def test_what_should_have_been_told_and_was_not_costs_the_reward():
    told = next(task for task in tau2_tasks("airline") if theirs(task).evaluation_criteria.communicate_info)
    plan = plan_of(told, communicate_info=[])
    assert play(told, plan, plan.user).rewards == {"outcome": 0.0, "db": 1.0, "communicate": 0.0}


def test_an_answer_of_nothing_and_an_unfinished_episode_have_no_reward():
    task = tau2_tasks("airline")[0]
    assert play(task, IdleAgent("silent")).rewards == {"outcome": 0.0}
    cut = play(task, Says(Message(role="assistant", tool_calls=[call("list_all_airports")])), turns=1)
    assert (cut.status, cut.rewards) == ("turn_limit", {"outcome": 0.0})


def test_a_conversation_out_of_a_record_is_judged_the_same(bench):
    task, _ = first_with_a_change("retail", bench)
    plan = plan_of(task)
    episode = play(task, plan, plan.user)
    lines = [message.model_dump_json() for message in episode.messages]
    again = tau2_rewards(type(task).model_validate_json(task.model_dump_json()), [_read(line) for line in lines])
    assert again == episode.rewards
    shortened = [message for message in episode.messages if message.role in ("system", "user")]
    assert tau2_rewards(task, shortened)["outcome"] == 0.0


def test_mistakes_are_answered_readably_and_cost_nothing(bench):
    task, _ = first_with_a_change("airline", bench)
    plan = plan_of(task)
    mistakes = [
        call("no_such_tool"),
        call("get_user_details", "{"),
        call("get_user_details", '["mia"]', id="2"),
        call("get_user_details", '{"user": "mia"}', id="3"),
        call("calculate", '{"expression": "9**9**9**9"}', id="4"),
        call("calculate", '{"expression": "2 * 3"}', id="5"),
    ]

    class Clumsy:
        async def complete(self, messages, tools, sampling):
            if messages[-1].role == "user" and sum(message.role == "user" for message in messages) == 1:
                return Completion(message=Message(role="assistant", tool_calls=mistakes))
            return await plan.complete(messages, tools, sampling)

    episode = play(task, Clumsy(), plan.user)
    answers = [message.content for message in episode.messages if message.role == "tool"][: len(mistakes)]
    assert answers[0] == "Error: Tool 'no_such_tool' not found."
    assert answers[1] == answers[2] == "Error: arguments of get_user_details must be a JSON object"
    assert answers[3].startswith("Error: ")
    assert answers[4] == "Error: powers are not supported"
    assert answers[5] == "6.0"
    assert episode.rewards["outcome"] == 1.0


def test_every_episode_has_a_database_of_its_own(bench):
    task, actions = first_with_a_change("retail", bench)

    async def two():
        mine, other = Tau2Environment(greets), Tau2Environment(greets)
        await asyncio.gather(mine.reset(task), other.reset(task))
        before = other._world.get_db_hash()
        assert mine._world.get_db_hash() == before
        for action in actions:
            await mine.step([call(action.name, json.dumps(action.arguments))])
        assert mine._world.get_db_hash() != before
        assert other._world.get_db_hash() == before
        await mine.reset(task)
        assert mine._world.get_db_hash() == before
        await mine.close()
        await mine.close()

    asyncio.run(two())


def test_the_world_opens_with_policy_greeting_and_the_users_words():
    async def open_it():
        return await Tau2Environment(greets).reset(tau2_tasks("airline")[0])

    messages, tools = asyncio.run(open_it())
    assert [message.role for message in messages] == ["system", "assistant", "user"]
    assert "# Airline Agent Policy" in messages[0].content
    assert messages[2].content == OPENING
    assert {"book_reservation", "transfer_to_human_agents"} <= {tool.name for tool in tools}
    assert all(tool.function["description"] for tool in tools)


def test_reasoning_is_kept_over_tool_results_and_dropped_at_a_new_user_turn():
    thinks = [
        Message(role="assistant", reasoning_content="THOUGHT-1", tool_calls=[call("list_all_airports")]),
        Message(role="assistant", reasoning_content="THOUGHT-2", content="Which of them?"),
        Message(role="assistant", reasoning_content="THOUGHT-3", content="Good."),
    ]
    policy = Says(*thinks)
    episode = play(tau2_tasks("airline")[0], policy, lambda world: ScriptedUser((OPENING, "The second one.")))
    assert episode.status == "finished"
    prompts = [encode(messages, tools) for messages, tools in policy.saw]
    assert "THOUGHT-1" in prompts[1]
    assert "THOUGHT" not in prompts[2]
    assert [one.reasoning_content for one in episode.messages if one.reasoning_content] == [
        "THOUGHT-1",
        "THOUGHT-2",
        "THOUGHT-3",
    ]


@pytest.mark.parametrize("sign", ["###STOP###", "###TRANSFER###", "Bye. ###OUT-OF-SCOPE###"])
def test_a_policy_plays_the_customer_by_tau2_benchs_guidelines_until_a_stop_sign(sign):
    customer = Says("I want to cancel.", "My name is Mia.", sign)
    agent = Says(
        Message(role="assistant", reasoning_content="who?", tool_calls=[call("list_all_airports")]),
        Message(role="assistant", reasoning_content="ask", content="What is your name?"),
        "I cannot do that.",
    )
    task = tau2_tasks("airline")[0]
    episode = play(task, agent, lambda world: Tau2User(world, customer))
    assert episode.status == "finished"
    seen, tools = customer.saw[1]
    assert [message.role for message in seen] == ["system", "user", "assistant", "user"]
    assert [message.content for message in seen[2:]] == ["I want to cancel.", "What is your name?"]
    assert theirs(task).user_scenario.instructions.reason_for_call in seen[0].content.replace("\t", "")
    assert "# User Simulation Guidelines" in seen[0].content
    assert tools == []
    assert "who?" not in str(customer.saw)


def test_a_customer_with_a_device_acts_reads_the_result_and_the_agent_sees_only_words():
    check = Message(role="assistant", reasoning_content="look", tool_calls=[call("check_status_bar")])
    customer = Says("No service here.", check, "It shows no signal.", "###STOP###")
    agent = Says("Please check the status bar.", "Thank you.")
    task = tau2_tasks("telecom")[0]
    worlds = []

    def user(world):
        worlds.append(world)
        return Tau2User(world, customer)

    episode = play(task, agent, user)
    assert episode.status == "finished"
    assert "check_status_bar" in {tool.name for tool in customer.saw[1][1]}
    after = customer.saw[2][0]
    assert after[-2].tool_calls[0].function.name == "check_status_bar"
    assert "Status Bar" in after[-1].content
    assert not any(message.role == "tool" for message in agent.saw[1][0])
    assert [action.before for action in worlds[0].user_actions] == [4]
    assert customer.saw[3][0][: len(after)] == after, "what the customer did stays in the customer's view"


def test_a_simulator_that_says_nothing_or_never_speaks_is_the_worlds_fault():
    task = tau2_tasks("telecom")[0]
    silent = play(task, Says("Hello?"), lambda world: Tau2User(world, Says("Help.", "  ")))
    assert (silent.status, silent.rewards) == ("infrastructure_error", {})
    busy = Message(role="assistant", tool_calls=[call("check_status_bar")])
    endless = Says("Help.", *[busy] * MOST_ACTIONS)
    acting = play(task, Says("Hello?"), lambda world: Tau2User(world, endless))
    assert (acting.status, acting.rewards) == ("infrastructure_error", {})
    gone = play(task, Says(), lambda world: Tau2User(world, Says("###STOP###")))
    assert gone.status == "infrastructure_error"


def test_unknown_domains_splits_and_tasks_are_named():
    with pytest.raises(ValueError, match=r"no domain 'boats', only .*airline"):
        tau2_tasks("boats")
    with pytest.raises(ValueError, match="Invalid task split name: never"):
        tau2_tasks("airline", "never")
    known = tau2_tasks("airline")[0]
    gone = {"tau2": {"domain": "airline", "split": "base", "id": "gone"}}
    for metadata, message in [({}, "is no task of tau2-bench's"), (gone, "has no task 'gone' in airline")]:
        stranger = known.model_copy(update={"metadata": metadata})
        with pytest.raises(ValueError, match=message):
            asyncio.run(Tau2Environment(greets).reset(stranger))


def _read(line):
    return Message.model_validate_json(line)
