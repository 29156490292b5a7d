"""Stages run in order and once; killed anywhere, the same command ends with the same bits."""

import errno
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from baleen.pipeline.folder import RunFolderError, open_run_folder
from baleen.pipeline.loading import RecipeError
from baleen.pipeline.progress import PlainProgress
from baleen.pipeline.runner import run, stage_seed


class Lines:
    """A stream that remembers."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def start(path, recipe, *stages, lines=None):
    folder = open_run_folder(path, recipe)
    return run(recipe, folder, {stage.name: stage for stage in stages}, PlainProgress(lines or Lines()))


def test_a_run_leaves_a_summary_joined_from_its_stages(toy, tmp_path):
    summary = start(tmp_path, toy.recipe(run={"seed": 4}), toy.Walk(), toy.Sum())
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["validation_loss"]) == {"dense", "sparse"}
    assert summary["logprob_gap"] == 1e-6
    assert summary["recipe"] == "toy"
    assert summary["seed"] == 4
    assert summary["peak_rss_bytes"] > 10 << 20
    assert [stage["name"] for stage in summary["stages"]] == ["walk", "sum"]
    assert [stage["tokens"] for stage in summary["stages"]] == [120, 0]
    assert summary["wall_seconds"] >= sum(stage["seconds"] for stage in summary["stages"]) - 0.01


def test_a_stage_that_is_done_never_runs_again(toy, tmp_path):
    walk = toy.Walk()
    first = start(tmp_path, toy.recipe(), walk, toy.Sum())
    lines = Lines()
    second = start(tmp_path, toy.recipe(), walk, toy.Sum(), lines=lines)
    assert walk.calls == 1
    assert second == first
    assert "[1/2] A random walk: done before" in lines.text


class FailsOnce:
    name, title = "sum", "Fails once"

    def __init__(self, error):
        self.error = error

    def run(self, context):
        (context.folder / "begun").write_text("")
        time.sleep(0.05)
        if self.error:
            error, self.error = self.error, None
            raise error
        return {"tokens": 1}


def test_seconds_add_up_over_attempts_and_the_first_stage_is_kept(toy, tmp_path):
    walk, second = toy.Walk(), FailsOnce(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, toy.recipe(), walk, second)
    assert not (tmp_path / "summary.json").exists()
    summary = start(tmp_path, toy.recipe(), walk, second)
    assert walk.calls == 1
    assert summary["stages"][1]["seconds"] >= 0.1
    assert summary["wall_seconds"] >= 0.1


def test_a_full_disk_in_a_stage_is_told_and_the_same_command_goes_on(toy, tmp_path):
    walk, second = toy.Walk(), FailsOnce(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RunFolderError, match="is full"):
        start(tmp_path, toy.recipe(), walk, second)
    assert start(tmp_path, toy.recipe(), walk, second)["stages"][1]["tokens"] == 1
    assert walk.calls == 1


def test_an_error_of_the_stage_itself_is_passed_on(toy, tmp_path):
    with pytest.raises(ZeroDivisionError):
        start(tmp_path, toy.recipe("sum"), FailsOnce(ZeroDivisionError()))


def test_an_unknown_stage_names_the_nearest(toy, tmp_path):
    with pytest.raises(RecipeError, match="no stage 'walkk'; did you mean 'walk'"):
        start(tmp_path, toy.recipe("walkk"), toy.Walk(), toy.Sum())


def test_the_same_seed_gives_the_same_numbers_whatever_ran_before(toy, tmp_path):
    alone = start(tmp_path / "a", toy.recipe("walk"), toy.Walk())
    torch.manual_seed(99)
    after = start(tmp_path / "b", toy.recipe("other", "walk"), toy.Walk("other"), toy.Walk())
    other_seed = start(tmp_path / "c", toy.recipe("walk", run={"seed": 1}), toy.Walk())
    assert alone["validation_loss"] == after["validation_loss"]
    assert alone["validation_loss"] != other_seed["validation_loss"]
    assert stage_seed(0, "walk") != stage_seed(0, "other")


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
import toy
from pathlib import Path
from baleen.pipeline.folder import open_run_folder
from baleen.pipeline.progress import PlainProgress
from baleen.pipeline.runner import run
recipe = toy.recipe("walk", "sum")
stages = {"walk": toy.Walk(steps=12, pause=0.03), "sum": toy.Sum()}
run(recipe, open_run_folder(Path(sys.argv[1]), recipe), stages, PlainProgress(sys.stdout))
"""


def command(path, toy_folder):
    return [sys.executable, "-c", PROGRAM, str(path), str(toy_folder)]


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, toy_folder):
    subprocess.run(command(tmp_path / "whole", toy_folder), check=True, stdout=subprocess.DEVNULL)
    moments = random.Random(0)
    killed = 0
    for _ in range(3):
        attempt = subprocess.Popen(command(tmp_path / "killed", toy_folder), stdout=subprocess.DEVNULL)
        log = tmp_path / "killed/stages/01-walk/metrics.jsonl"
        while not log.exists() and attempt.poll() is None:
            time.sleep(0.005)
        # Torch's import differs from machine to machine: the clock runs from the stage's first row.
        time.sleep(moments.uniform(0.02, 0.25))
        attempt.send_signal(signal.SIGKILL)
        killed += attempt.wait() == -signal.SIGKILL
    assert killed
    subprocess.run(command(tmp_path / "killed", toy_folder), check=True, stdout=subprocess.DEVNULL)
    for file in ("01-walk/metrics.jsonl", "01-walk/checkpoint.json"):
        whole, resumed = (tmp_path / name / "stages" / file for name in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes()
    whole, resumed = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert whole["validation_loss"] == resumed["validation_loss"]
