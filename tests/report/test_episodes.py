"""What a page holds of its episodes: all that a reader can use, none of it changed in silence."""

from __future__ import annotations

import base64
import itertools
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.chat.messages import Message
from baleen.chat.retention import last_user_index, reasoning_is_kept
from baleen.report.episode_pack import LONGEST_TEXT, Found, dropped_at, pack
from baleen.report.page import write_report
from baleen.report.viewer import write_viewer

PLENTY = 10**9
anything = st.text(st.characters(codec=None))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | anything


def row(number=0, **fields):
    task = {"id": f"t{number}", "domain": "tools", "messages": [], "thinking": True}
    return {"task": task, "messages": [], "status": "finished", "rewards": {"outcome": 1.0}} | fields


def found(rows):
    return (Found("a.jsonl", line, one) for line, one in enumerate(rows, start=1))


def strictly(text):
    """The JSON value as a browser reads it, which knows no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def opened(data):
    return zlib.decompress(base64.b64decode(data)).decode()


def unpacked(packed):
    """The index's columns, and the episodes as the page holds them, in order."""
    columns = strictly(opened(packed.index))["columns"]
    pieces = [[strictly(line) for line in opened(piece).split("\n")] for piece in packed.pieces]
    held = [pieces[piece][place] for piece, place in zip(columns["piece"], columns["place"], strict=True)]
    return columns, held


def held_of(one):
    return unpacked(pack(found([one]), PLENTY))[1][0]


def test_every_episode_is_found_where_the_index_says():
    rows = [row(number, note="x" * (number % 7) * 20_000) for number in range(200)]
    packed = pack(found(rows), PLENTY)
    columns, held = unpacked(packed)
    assert len(packed.pieces) > 3
    assert [one["episode"]["task"]["id"] for one in held] == columns["task"] == [f"t{n}" for n in range(200)]
    assert columns["number"] == [one["line"] for one in held] == list(range(1, 201))


def test_what_does_not_fit_is_left_out_evenly_and_counted():
    chance = random.Random(0)
    rows = [row(number, note=chance.randbytes(2000).hex()) for number in range(400)]
    packed = pack(found(rows), 200_000)
    numbers = unpacked(packed)[0]["number"]
    assert len(packed.index) + sum(map(len, packed.pieces)) <= 200_000
    assert packed.total == 400
    assert 40 < packed.shown == len(numbers) < 100
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert max(gaps) - min(gaps) <= 1


def test_token_ids_are_counted_not_held():
    completion = {"prompt_tokens": [5] * 812, "sampled_tokens": [6] * 40, "finish_reason": "length", "faults": ["f"]}
    event = {"strategy": "summary", "summary": {"message": {"content": "notes"}, "prompt_tokens": [7] * 33}}
    columns, (held,) = unpacked(pack(found([row(completions=[completion], context_events=[event])]), PLENTY))
    counted = {"prompt_length": 812, "sampled_length": 40, "finish_reason": "length", "faults": ["f"]}
    assert held["episode"]["completions"] == [counted]
    assert held["episode"]["context_events"][0]["summary"]["message"] == {"content": "notes"}
    assert columns["tokens"] == [40]
    assert "_tokens" not in json.dumps(held)


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(anything, inner)))
def test_any_value_is_held_as_it_was_but_for_what_json_does_not_know(value):
    messages = [{"role": "assistant", "content": value}]
    expected = json.loads(json.dumps(value), parse_constant=lambda name: None)
    assert held_of(row(messages=messages))["episode"]["messages"] == [{"role": "assistant", "content": expected}]


def test_a_long_text_is_cut_and_says_by_how_much():
    said = held_of(row(messages=[{"role": "tool", "content": "x" * (LONGEST_TEXT + 1234)}]))
    assert said["episode"]["messages"][0]["content"].endswith("x … (1,234 more characters)")


def test_messages_beyond_an_episodes_bound_are_counted():
    held = held_of(row(messages=[{"role": "tool", "content": "x" * 90_000}] * 30))
    assert len(held["episode"]["messages"]) + held["cut"] == 30
    assert held["cut"] > 10


def test_an_endless_nest_is_cut():
    nest = []
    for _ in range(500):
        nest = [nest]
    assert "nested deeper" in json.dumps(held_of(row(messages=[{"content": nest}])))


@pytest.mark.parametrize("status", ["infrastructure_error", "policy_error", "tool_error"])
def test_what_the_model_did_not_do_has_no_outcome(status):
    assert unpacked(pack(found([row(status=status, rewards={"outcome": 0.0})]), PLENTY))[0]["outcome"] == [None]


@given(st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), max_size=12), st.booleans())
def test_reasoning_is_marked_dropped_exactly_when_the_thinking_rule_drops_it(roles, thinking):
    messages = [{"role": role, "content": "c", "reasoning_content": "r"} for role in roles]
    marks = dropped_at({"task": {"thinking": thinking}, "messages": messages})
    typed = [Message(role=role) for role in roles]
    for index in (i for i, role in enumerate(roles) if role == "assistant"):
        for end in range(index + 1, len(roles) + 1):
            kept = reasoning_is_kept(index, last_user_index(typed[:end]), thinking) or not thinking
            assert kept == (end <= marks.get(index, len(roles)))


def test_a_report_holds_the_evaluations_episodes_and_the_last_steps_of_training(run_folder):
    training = run_folder / "stages/10-mixed_rl/episodes.jsonl"
    training.write_text(json.dumps(row()) + "\n" + '{"torn')
    page = write_report(run_folder).read_text()
    assert "All 61 episodes" in page


def test_an_evaluation_with_a_file_for_each_checkpoint_is_not_counted_twice(run_folder):
    folder = run_folder / "stages/11-evaluation"
    for name in ("cold_start", "mixed_rl"):
        (folder / f"episodes-{name}.jsonl").write_text((folder / "episodes.jsonl").read_text())
    assert "All 120 episodes" in write_report(run_folder).read_text()


def test_a_report_says_how_many_episodes_it_leaves_out(run_folder):
    chance = random.Random(0)
    rows = (json.dumps(row(note=chance.randbytes(3000).hex())) for _ in range(900))
    (run_folder / "stages/11-evaluation/episodes.jsonl").write_text("\n".join(rows))
    path = write_report(run_folder)
    assert "of 900 episodes, evenly taken" in path.read_text()
    assert path.stat().st_size < 3_000_000


def test_a_file_without_episodes_is_named(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"no episodes in .*metrics\.jsonl"):
        write_viewer([metrics], tmp_path / "out.html")
    with pytest.raises(FileNotFoundError, match="no file of episodes"):
        write_viewer([tmp_path / "nowhere.jsonl"], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_a_torn_last_line_is_forgiven_and_a_broken_one_is_named(tmp_path):
    file = tmp_path / "e.jsonl"
    file.write_text(json.dumps(row()) + "\n" + "{broken\n" + json.dumps(row()) + "\n" + '{"torn')
    page = write_viewer([file], tmp_path / "out.html").read_text()
    assert "e.jsonl, line 2" in page
    assert "line 4" not in page
