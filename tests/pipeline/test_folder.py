"""A run folder belongs to one recipe, one process at a time, and an error never costs what was there."""

import os
import subprocess
import sys

import pytest

from baleen.pipeline.folder import RunFolderError, explain, open_run_folder


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_same_recipe_opens_the_folder_again(toy, tmp_path):
    open_run_folder(tmp_path / "run", toy.recipe(), "given")
    before = contents(tmp_path / "run")
    open_run_folder(tmp_path / "run", toy.recipe(), "given otherwise")
    assert contents(tmp_path / "run") == before
    assert before["recipe.toml"] == b"given"


def test_another_recipe_is_refused_with_the_keys_that_differ_and_nothing_touched(toy, tmp_path):
    open_run_folder(tmp_path, toy.recipe(pretrain={"steps": 100}), "given")
    before = contents(tmp_path)
    other = toy.recipe(run={"seed": 5}, pretrain={"steps": 77})
    with pytest.raises(
        RunFolderError, match=r"pretrain\.steps: 100 there, 77 asked\n  run\.seed: 0 there, 5"
    ) as caught:
        open_run_folder(tmp_path, other, "other")
    assert "--out" in str(caught.value)
    assert "model." not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_folder_of_somebody_else_is_refused_and_not_touched(toy, tmp_path):
    (tmp_path / "stages").mkdir()
    with pytest.raises(RunFolderError, match="not a run folder"):
        open_run_folder(tmp_path, toy.recipe())
    assert [file.name for file in tmp_path.iterdir()] == ["stages"]


def test_a_file_in_the_folders_place_is_refused(toy, tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(RunFolderError, match="is a file"):
        open_run_folder(tmp_path / "run", toy.recipe())
    with pytest.raises(RunFolderError, match="cannot use"):
        open_run_folder(tmp_path / "run" / "below", toy.recipe())
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_told(toy, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match=r"cannot write.*--out"):
        open_run_folder(tmp_path / "run", toy.recipe())


def test_an_unwritable_place_is_told_even_to_root(toy):
    from pathlib import Path

    with pytest.raises(RunFolderError, match=r"/proc/baleen-run"):
        open_run_folder(Path("/proc/baleen-run"), toy.recipe())


def test_a_damaged_recipe_is_told_and_not_overwritten(toy, tmp_path):
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"recipe\.json"):
        open_run_folder(tmp_path, toy.recipe())
    assert (tmp_path / "recipe.json").read_text() == "{"


def test_two_runs_at_once_are_refused(toy, tmp_path):
    folder = open_run_folder(tmp_path, toy.recipe())
    with (
        folder.lock(),
        pytest.raises(RunFolderError, match=f"process {os.getpid()}"),
        open_run_folder(tmp_path, toy.recipe()).lock(),
    ):
        pass
    with folder.lock():
        pass


def test_the_lock_of_a_killed_process_is_taken_over(toy, tmp_path):
    folder = open_run_folder(tmp_path, toy.recipe())
    program = (
        "import os, signal, sys; from pathlib import Path; from baleen.pipeline.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "run.lock").exists()
    with folder.lock():
        assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_a_full_disk_is_told_with_how_to_go_on(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "w") as full:
        full.write("x")
    assert "the same command goes on" in str(explain(caught.value, tmp_path))
    assert explain(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path) is not None
    assert explain(ValueError("something else"), tmp_path) is None
    assert explain(PermissionError(13, "denied", "/somewhere/else/corpus.txt"), tmp_path) is None
