"""Environments of ours served to OpenEnv's client, and OpenEnv's played here: the real package on loopback."""

import json

import pytest
from demonstrations import tool_tasks, turns_of, with_fault
from peers import peer, run_peer

from baleen.agent.records import write_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Episodes side by side: solved, given up, too long, one that goes on after its end, and two with a fault."""
    peer("openenv")
    folder = tmp_path_factory.mktemp("openenv")
    first, second = tool_tasks(2)
    tasks = [first, second, with_fault(second, "verifier"), with_fault(second, "world")]
    solved = turns_of(second)
    calling = solved[0]
    scripts = [(1, solved), (1, [{"content": "I do not know."}]), (1, [calling] * 8), (1, [*solved, calling])]
    scripts += [(2, solved), (3, solved)]
    write_jsonl(folder / "tasks.jsonl", [task.model_dump(mode="json") for task in tasks])
    write_jsonl(folder / "script.jsonl", [{"index": index, "turns": turns} for index, turns in scripts])
    done = run_peer("openenv", ["-m", "openenv_ours", "tasks.jsonl", "script.jsonl"], folder=folder)
    return tasks, json.loads(done.stdout.splitlines()[-1])


def test_openenvs_client_runs_an_episode_of_ours_to_its_reward(played):
    tasks, record = played
    solved = record["episodes"][0]
    assert (solved["done"], solved["reward"]) == (True, 1.0)
    assert solved["metadata"] == {"status": "finished", "rewards": {"outcome": 1.0, "calls": 3.0}}
    assert solved["state"]["task"] == tasks[1].id
    assert solved["seen"][0]["messages"][-1]["content"] == tasks[1].messages[-1].content
    assert [message["role"] for message in solved["seen"][1]["messages"]] == ["tool"]
    assert {tool["function"]["name"] for tool in solved["seen"][0]["tools"]} == set(tasks[1].metadata["tools"])


def test_an_episode_without_work_is_worth_nothing(played):
    assert played[1]["episodes"][1]["reward"] == 0.0


def test_an_episode_of_too_many_turns_ends_at_the_limit_and_is_judged(played):
    long = played[1]["episodes"][2]
    assert (long["done"], long["reward"]) == (True, 0.0)
    assert long["state"]["status"] == "turn_limit"
    assert long["seen"][-1]["messages"], "the last turn's calls were answered"


def test_a_turn_after_the_end_is_refused(played):
    assert "reset first" in played[1]["episodes"][3]["error"]


def test_what_was_not_scored_has_no_reward_there(played):
    unscored, failed = played[1]["episodes"][4:]
    assert (unscored["done"], unscored["reward"]) == (True, None)
    assert "the world is gone" in failed["error"]


def test_openenv_lists_our_splits(played):
    assert [split["name"] for split in played[1]["splits"]] == ["test"]


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    peer("openenv")
    done = run_peer("openenv", ["-m", "openenv_threads"], folder=tmp_path_factory.mktemp("threads"))
    return json.loads(done.stdout.splitlines()[-1])


def test_threads_that_come_at_once_share_one_event_loop(threads):
    assert threads["loops"] == 1


def test_a_world_that_cannot_be_reset_is_closed_and_never_stepped(threads):
    assert threads["errors"] == ["no world", "no episode is running; reset first"]
    assert threads["closed"] == 1


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    peer("openenv")
    done = run_peer("openenv", ["-m", "openenv_theirs"], folder=tmp_path_factory.mktemp("theirs"))
    return json.loads(done.stdout.splitlines()[-1])


def test_an_environment_of_openenv_is_played_here_to_its_reward(theirs):
    game = theirs["guessing"]
    assert [message["content"] for message in game["opening"]] == ["Play.", '{"hint":"a number from 0 to 9"}']
    assert [tool["name"] for tool in game["tools"]] == ["act"]
    assert list(game["tools"][0]["parameters"]["properties"]) == ["number"]
    texts = [answer["content"] for answer in game["answers"]]
    assert texts[0] == '{"hint":"too low"}'
    assert texts[4] == '{"hint":"right"}\n[the episode is over]'
    assert game["rewards"] == {"outcome": 1.0}


def test_what_the_model_does_wrong_there_comes_back_as_text(theirs):
    texts = [answer["content"] for answer in theirs["guessing"]["answers"]]
    assert [text.split(":")[0] for text in texts[1:4]] == ["error"] * 3
    assert "schema" in texts[1]
    assert "not a JSON object" in texts[2]
    assert "tools: act" in texts[3]
    assert "over" in texts[5]


def test_an_episode_whose_steps_were_never_rewarded_is_not_scored(theirs):
    assert theirs["unscored"]["rewards"] == {"outcome": None}


def test_a_server_of_tools_offers_its_tools(theirs):
    added = theirs["adding"]
    assert [tool["name"] for tool in added["tools"]] == ["add"]
    assert set(added["tools"][0]["parameters"]["properties"]) == {"a", "b"}
    assert added["answers"][0]["content"] == "42"
    assert added["answers"][1]["content"].startswith("error")


def test_a_lost_connection_is_the_infrastructures_fault_and_no_new_world(theirs):
    assert "is gone" in theirs["lost"]["failed"]


def test_a_server_that_does_not_tell_its_actions_gives_no_episode(theirs):
    assert "gives no episode: KeyError('action')" in theirs["mute"]["failed"]
