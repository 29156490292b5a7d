"""Episodes on disk: nothing that matters is lost, and a file is whole or not there."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Counter, ScriptedPolicy, task

from baleen.agent.loop import run_episode
from baleen.agent.policy import Sampling
from baleen.agent.records import episode_from_json, episode_to_json, read_jsonl, write_jsonl


def an_episode():
    policy = ScriptedPolicy({"t": ("two", "add", "done")})
    made = task("t", nothing=None, empty=[])
    return asyncio.run(run_episode(made, lambda _: Counter(), policy, Sampling(seed=3)))


def test_an_episode_survives_the_way_through_a_file(tmp_path):
    episode = an_episode()
    write_jsonl(tmp_path / "e.jsonl", [episode_to_json(episode, step=5, advantage=0.5)])
    (row,) = read_jsonl(tmp_path / "e.jsonl")
    assert episode_from_json(row) == episode
    assert (row["step"], row["advantage"]) == (5, 0.5)


def test_messages_are_lean_and_in_the_common_shape():
    record = episode_to_json(an_episode())
    assert record["messages"][0] == {"role": "user", "content": "task t"}
    assert record["messages"][1]["tool_calls"][0] == {
        "id": "0-0",
        "type": "function",
        "function": {"name": "add", "arguments": "{}"},
    }
    assert len(record["completions"][0]["sampled_tokens"]) == 3


def test_extra_keys_cannot_hide_the_episodes_own():
    with pytest.raises(ValueError, match="status"):
        episode_to_json(an_episode(), status="other")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 2}, {"a": object()}])
    assert list(read_jsonl(path)) == [{"a": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a":1}\n{"a":\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(tmp_path / "rows.jsonl"))


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5))
def test_any_rows_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == json.loads(json.dumps(rows))


def test_half_a_surrogate_pair_comes_back_too(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "\ud800 鲸"}, {"a": "鲸"}])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [{"a": "\ud800 鲸"}, {"a": "鲸"}]
    assert "鲸" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()[1]
