"""The whole chain at toy size, through the command: it leaves what it promises, and a kill changes nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baleen.chat.tokenizer import Tokenizer
from baleen.model.checkpoint import load_model

TEXT_STAGE = {"steps": 4, "tokens_per_step": 1200, "sequence_length": 128, "warmup_steps": 2, "checkpoint_every": 2}
REINFORCEMENT = {"steps": 1, "tasks_per_step": 2, "group_size": 2, "max_tokens": 12, "max_turns": 2}
SIZES = {
    "run": {"threads": 1},
    "model": {"hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 48, "index_topk": 24},
    "synthesis": {"train_tasks": 40, "test_tasks": 6, "unseen_tasks": 2},
    "pretrain": TEXT_STAGE | {"steps": 6},
    "indexer_warmup": TEXT_STAGE,
    "sparse": TEXT_STAGE,
    "cold_start": TEXT_STAGE,
    "specialist_tools": REINFORCEMENT | {"steps": 3, "checkpoint_every": 1},
    "specialist_arithmetic": REINFORCEMENT,
    "distill": TEXT_STAGE | {"tasks_per_specialist": 2},
    "mixed_rl": REINFORCEMENT | {"steps": 2},
    "evaluation": {"tasks": 3, "unseen_tasks": 2, "attempts": 2, "max_tokens": 12, "max_turns": 2},
}
TIMINGS = ("tokens_per_second", "rollout_seconds", "update_seconds")
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command of the smallest recipe: `micro` with every size overridden, on a corpus made here."""
    corpus = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["whale", "baleen", "krill", "sea", "dives", "sings", "deep", "north", "slowly", "and", "then", "the"]
    for place in range(40):
        lines = (" ".join(rng.choices(words, k=9)) + f" {rng.randrange(1000)}." for _ in range(30))
        (corpus / f"{place:02d}.txt").write_text("\n".join(lines))
    overrides = [f"{section}.{key}={value}" for section, keys in SIZES.items() for key, value in keys.items()]

    def build(out: Path) -> list[str]:
        given = [f"corpus.path={corpus}", *overrides]
        return [sys.executable, "-m", "baleen", "run", "micro", *given, "--out", str(out)]

    return build


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(command(folder))
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_the_summary_holds_what_others_rely_on(whole):
    summary = summary_of(whole)
    assert summary["wall_seconds"] > 0
    assert summary["peak_rss_bytes"] > 50 << 20
    assert summary["validation_loss"].keys() >= {"dense", "sparse"}
    assert summary["attention_mass"].keys() >= {"selected", "oracle", "recent", "random"}
    mass = summary["attention_mass"]
    assert 0 < max(mass["selected"], mass["recent"], mass["random"]) <= mass["oracle"] <= 1.0 + 1e-6
    counts = {name: result["n"] for name, result in summary["pass_at_1"].items()}
    assert counts == {"cold_start": 3, "mixed_rl": 3, "unseen_tools": 2}
    assert summary["logprob_gap"]["by_dtype"]["float32"]["replay"] < 1e-5
    names = [stage["name"] for stage in summary["stages"]]
    assert names[0] == "synthesis"
    assert names[-1] == "evaluation"
    assert len(names) == 11
    assert all(stage["seconds"] > 0 for stage in summary["stages"])
    assert all(stage["tokens"] > 0 for stage in summary["stages"] if stage["name"] in ("pretrain", "mixed_rl"))


@pytest.mark.slow
def test_the_final_folder_loads_with_its_tokenizer_and_the_report_is_one_file(whole):
    tokenizer, model = Tokenizer.load(whole / "final"), load_model(whole / "final")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("the whale sings")])).logits
    assert logits.shape[-1] == len(tokenizer)
    assert logits.isfinite().all()
    page = (whole / "report.html").read_text()
    assert "<html" in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_run_again_a_finished_run_changes_nothing(whole, command):
    before = summary_of(whole), (whole / "final/model.safetensors").stat().st_mtime_ns
    assert "done before" in finish(command(whole))
    assert (summary_of(whole), (whole / "final/model.safetensors").stat().st_mtime_ns) == before


def rows_of(file: Path) -> int:
    return len(file.read_bytes().splitlines()) if file.exists() else 0


MOMENTS = {
    "synthesis done": lambda stages: (stages / "01-synthesis/done.json").exists(),
    "pre-training past a checkpoint": lambda stages: rows_of(stages / "03-pretrain/metrics.jsonl") >= 3,
    "cold start begun": lambda stages: rows_of(stages / "06-cold_start/metrics.jsonl") >= 1,
    "a specialist past a checkpoint": lambda stages: rows_of(stages / "07-specialist_tools/metrics.jsonl") >= 2,
    "evaluation half done": lambda stages: (stages / "11-evaluation/specialist_tools.json").exists(),
}


def kill_at(command: list[str], stages: Path, reached) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ends = time.monotonic() + LIMIT_SECONDS
    while not reached(stages):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < ends
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


@pytest.mark.slow
def test_killed_in_stage_after_stage_it_ends_with_the_same_bits(whole, command, tmp_path):
    folder = tmp_path / "run"
    for reached in MOMENTS.values():
        kill_at(command(folder), folder / "stages", reached)
        assert not (folder / "summary.json").exists()
    finish(command(folder))
    for path in sorted(whole.glob("stages/*/model/model.safetensors")):
        same = load_file(folder / path.relative_to(whole))
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, same[name]), f"{path.parts[-3]}: {name}"
    ends = [(each / "final/model.safetensors").read_bytes() for each in (whole, folder)]
    assert ends[0] == ends[1]
    for path in sorted(whole.glob("stages/*/metrics.jsonl")):
        logs = [
            [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in file.read_text().splitlines()]
            for file in (path, folder / path.relative_to(whole))
        ]
        assert logs[0] == logs[1], path.parts[-2]
    expected, resumed = summary_of(whole), summary_of(folder)
    for key in ("pass_at_1", "validation_loss", "attention_mass", "logprob_gap"):
        assert expected[key] == resumed[key]
    results = "stages/11-evaluation/results.json"
    assert (whole / results).read_bytes() == (folder / results).read_bytes()


@pytest.mark.slow
def test_a_run_folder_of_another_recipe_is_refused_and_left_alone(whole, command, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    shutil.copyfile(whole / "recipe.json", copy / "recipe.json")
    done = subprocess.run([*command(copy), "run.seed=5"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "run.seed: 0 there, 5 asked" in done.stderr
    assert [file.name for file in copy.iterdir()] == ["recipe.json"]
