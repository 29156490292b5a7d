"""Records survive a kill: whole files or none, logs without torn lines, rows after the checkpoint gone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.training.records import MetricsLog, write_json_atomic, write_text_atomic


def test_a_json_file_reads_back_as_it_was_written(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"ü": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ü": [1, 2.5, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "a.json", object())
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_rename_leaves_no_rest(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text_atomic(tmp_path / "taken", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@given(steps=st.integers(0, 30), checkpoint=st.integers(-1, 31), torn=st.sampled_from(["", '{"st', '{"step": 7}']))
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path_factory, steps, checkpoint, torn):
    folder = tmp_path_factory.mktemp("log")
    whole, resumed = MetricsLog(folder / "whole.jsonl"), MetricsLog(folder / "resumed.jsonl")
    for step in range(steps):
        whole.append({"step": step, "loss": 1 / (step + 1)})
        resumed.append({"step": step, "loss": 1 / (step + 1)})
    with resumed.path.open("a") as file:
        file.write(torn)
    again = MetricsLog(resumed.path)
    again.truncate_after(checkpoint)
    for step in range(checkpoint + 1, steps):
        again.append({"step": step, "loss": 1 / (step + 1)})
    assert list(again) == list(whole)


def test_appending_after_a_kill_does_not_glue_onto_the_torn_line(tmp_path):
    (tmp_path / "log").write_text('{"step": 0}\n{"step": 1, "lo')
    log = MetricsLog(tmp_path / "log")
    log.append({"step": 1})
    assert [row["step"] for row in log] == [0, 1]


def test_a_row_without_a_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step"):
        MetricsLog(tmp_path / "log").append({"loss": 1.0})
