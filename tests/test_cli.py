"""The commands as a user calls them: fast to answer, clear about mistakes, loading only what they need."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baleen.cli import build_parser, main

ENVIRONMENT = {**os.environ, "COLUMNS": "100"}


def baleen(*arguments, **options):
    command = [sys.executable, "-m", "baleen", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, **options)


def test_help_answers_in_half_a_second():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert baleen("--help").returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


def test_help_lists_the_commands_and_each_has_its_own():
    text = baleen("--help").stdout
    for command in ("run", "convert", "chat", "synth", "eval", "report", "plan", "bench", "doctor"):
        assert f"    {command} " in text
        with pytest.raises(SystemExit) as stopped:
            build_parser().parse_args([command, "--help"])
        assert stopped.value.code == 0


@pytest.mark.parametrize("module", ["baleen", "baleen.cli"])
def test_importing_loads_nothing_heavy(module):
    program = f"import sys, {module}; print([m for m in ('torch', 'pydantic', 'rich', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_version_is_the_packages():
    assert baleen("-V").stdout == "baleen 0.1.0\n"


def test_a_dry_run_prints_stages_parameters_tokens_and_time_in_five_seconds(tmp_path):
    began = time.perf_counter()
    done = baleen("run", "nano", "--dry-run", cwd=tmp_path)
    assert time.perf_counter() - began < 5
    assert done.returncode == 0
    for part in ("parameters", "active per token", "pretrain", "mixed rl", "evaluation", "together", "≈"):
        assert part in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_parameters_by_part_operations_cache_and_memory_per_device():
    done = baleen("plan", "micro", "--devices", "2x80GB", "model.hidden_size=128")
    assert done.returncode == 0
    for part in (
        "indexer",
        "routed experts",
        "a token and layer",
        "dense",
        "sparse",
        "2 x 80 GB",
        "training",
        "serving",
    ):
        assert part in done.stdout


def test_a_plan_of_a_network_loads_no_torch():
    program = "import sys; from baleen.cli import main; main(['plan', 'deepseek-v3.2', '--devices', '64xH100'])"
    program += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nanno"], "did you mean 'nano'?"),
        (["run", "nano", "pretrian.steps=3"], "did you mean 'pretrain.steps'?"),
        (["run", "nano", "pretrain.steps=x"], "pretrain.steps"),
        (["plan", "nano", "pretrain.steps"], "key=value"),
        (["plan", "deepseek-v32"], "did you mean 'deepseek-v3.2'?"),
        (["plan", "nano", "--devices", "8xTPU"], "COUNTxNAME"),
        (["report", "/nowhere/run"], "/nowhere/run"),
        (["convert", "/nowhere/a", "/nowhere/b"], "/nowhere/a"),
    ],
)
def test_a_mistake_is_one_readable_line_and_no_traceback(arguments, told, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("baleen: ")
    assert "Traceback" not in error


def test_the_same_seed_synthesises_the_same_tasks(tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["synth", "--out", str(tmp_path / name), "--tasks", "12", "--seed", "3"]) == 0
    first, second = (Path(tmp_path / name / "tasks.jsonl").read_text() for name in ("a", "b"))
    assert first == second
    splits = [json.loads(line).get("split", "train") for line in first.splitlines()]
    assert (splits.count("train"), splits.count("test"), splits.count("unseen")) == (12, 1, 1)
    assert "14 tasks" in capsys.readouterr().out


def test_the_doctor_names_everything_it_looked_for(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    for name in ("python", "torch", "gpu", "cores", "memory", "sandbox", "chromium", "corpus"):
        assert name in text


def test_the_package_shows_its_names_and_loads_them_when_asked():
    import baleen as package

    assert set(package.__all__) <= set(dir(package))
    assert package.chat.encode([{"role": "user", "content": "hi"}]).endswith("<think>")
    assert callable(package.load_model)
    assert callable(package.load_tokenizer)
    assert callable(package.convert)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        package.nothing_like_it  # noqa: B018
