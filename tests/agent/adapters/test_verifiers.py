"""Environments of ours in verifiers, and verifiers' here, run by the real package in its own interpreter."""

import json

import pytest
from demonstrations import tool_tasks, turns_of, with_fault
from peers import peer, run_peer
from scripted_endpoint import scripted_endpoint

from baleen.agent.records import write_jsonl

pytestmark = pytest.mark.slow

RUN = "from verifiers.v1.cli.eval.main import main; main()"


def asked(messages):
    """The last user message's text."""
    return [message["content"] for message in messages if message["role"] == "user"][-1]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Tasks by verifiers' own command: one solved, one given up, one whose verifier does not run, one whose world
    fails. (tasks, episodes, the endpoint's requests)"""
    peer("verifiers")
    folder = tmp_path_factory.mktemp("verifiers")
    solved, given_up, unscored, failed = tool_tasks(4)
    tasks = [solved, given_up, with_fault(unscored, "verifier"), with_fault(failed, "world")]
    write_jsonl(folder / "tasks.jsonl", [task.model_dump(mode="json") for task in tasks])
    scripts = {task.messages[-1].content: turns_of(task) for task in tasks}
    scripts[given_up.messages[-1].content] = [{"content": "No."}]
    with scripted_endpoint(scripts) as (url, requests):
        arguments = ["-c", RUN, "baleen_tasks", "--no-push", "--no-rich", "-o", "out", "--run.name", "run"]
        arguments += ["-m", "scripted", "--client.base_url", url, "--env.taskset.tasks", folder / "tasks.jsonl"]
        arguments += ["--env.taskset.environment", "faulty:FaultyEnvironment"]
        run_peer("verifiers", arguments, folder=folder)
    lines = (folder / "out" / "run" / "traces.jsonl").read_text().splitlines()
    episodes = {episode["task"]["data"]["id"]: episode for episode in map(json.loads, lines)}
    return tasks, [episodes[task.id] for task in tasks], requests


def test_verifiers_runs_an_episode_of_ours_to_its_reward(evaluated):
    solved = evaluated[1][0]
    assert solved["ok"]
    assert solved["traces"][0]["rewards"] == {"outcome": {"score": 1.0, "weight": 1.0}}
    assert solved["traces"][0]["metrics"]["calls"] == 3.0


def test_an_episode_without_work_is_worth_nothing_there(evaluated):
    given_up = evaluated[1][1]
    assert given_up["ok"]
    assert given_up["traces"][0]["rewards"] == {"outcome": {"score": 0.0, "weight": 1.0}}


def test_what_was_not_scored_is_an_error_there_and_no_reward(evaluated):
    _, (_, _, unscored, failed), _ = evaluated
    assert [unscored["ok"], failed["ok"]] == [False, False]
    assert unscored["traces"][0]["rewards"] == failed["traces"][0]["rewards"] == {"outcome": None}
    assert "the environment's verifier did not run" in unscored["traces"][0]["errors"][-1]["message"]
    assert "the world is gone" in failed["traces"][0]["errors"][-1]["message"]


def test_the_model_reads_our_messages_and_tools_there_as_it_does_here(evaluated):
    tasks, _, requests = evaluated
    first = next(body for body in requests if body["messages"][-1]["content"] == tasks[0].messages[-1].content)
    told = [(message["role"], message["content"]) for message in first["messages"]]
    assert told == [(message.role, message.content) for message in tasks[0].messages]
    assert [tool["function"]["name"] for tool in first["tools"]] == tasks[0].metadata["tools"]


def test_verifiers_sends_the_reasoning_back_with_the_tools_results(evaluated):
    tasks, _, requests = evaluated
    conversations = [body["messages"] for body in requests]
    last = max((said for said in conversations if asked(said) == tasks[0].messages[-1].content), key=len)
    thoughts = [turn["reasoning_content"] for turn in turns_of(tasks[0])]
    assert [message["reasoning_content"] for message in last if message["role"] == "assistant"] == thoughts[:-1]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    peer("verifiers")
    done = run_peer("verifiers", ["-m", "verifiers_theirs"], folder=tmp_path_factory.mktemp("theirs"))
    return json.loads(done.stdout.splitlines()[-1])


def test_a_task_of_verifiers_runs_here_with_its_tools_to_its_weighted_reward(theirs):
    solved = theirs["solved"]
    assert [message["role"] for message in solved["messages"][:2]] == ["system", "user"]
    assert [tool["name"] for tool in solved["tools"]] == ["adder_add"]
    contents = [message["content"] for message in solved["messages"] if message["role"] == "tool"]
    assert contents[0] == "42"
    assert solved["rewards"] == {"outcome": 1.0, "right": 0.75, "used_the_tool": 0.25}


def test_what_the_model_does_wrong_there_comes_back_as_text(theirs):
    contents = [message["content"] for message in theirs["solved"]["messages"] if message["role"] == "tool"]
    assert [content.split(":")[0] for content in contents[1:]] == ["error", "error"]
    assert "tools: adder_add" in contents[2]


def test_a_verifier_that_fails_there_scores_nothing_here(theirs):
    assert theirs["unscored"]["rewards"]["outcome"] is None


def test_a_task_set_with_an_env_of_its_own_is_refused(theirs):
    assert "Env of its own" in theirs["refused"]


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    peer("verifiers")
    done = run_peer("verifiers", ["-m", "verifiers_endings"], folder=tmp_path_factory.mktemp("endings"), timeout=150)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_call_that_hangs_does_not_keep_its_episode_from_ending(endings):
    assert endings["took"] < 10


def test_a_rollout_that_fails_while_given_up_is_logged(endings):
    assert endings["logged"] == ["nothing was cleaned up"]
