"""The last stages: held-out tasks for every checkpoint, the gap between sampler and trainer, the final folder, the
page."""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch

from baleen.agent.policy import Sampling
from baleen.agent.records import episode_to_json, write_jsonl
from baleen.agent.task import Task
from baleen.evaluation.held_out import headline, outcomes, result_rows
from baleen.model.checkpoint import load_model
from baleen.pipeline.recipe import Recipe
from baleen.pipeline.stage import StageContext
from baleen.pipeline.stages import data
from baleen.pipeline.stages.reinforcement import SLOTS, objective_of
from baleen.pipeline.stages.text import open_model
from baleen.rl.grpo import collect_samples, mismatch, without_replay
from baleen.rl.rollout import RolloutWorker
from baleen.training.records import write_json_atomic

SINGLE_ATTEMPT = ("specialist_tools", "specialist_arithmetic", "distill")
"""Checkpoints on the way are judged by one attempt; the first and the last by `attempts`."""

GAP_TASKS = 16
EPISODES_KEPT = 48


class EvaluationStage:
    """pass@1 and pass@4 of the cold start, the specialists, the distilled and the final model."""

    name = "evaluation"
    title = "evaluation"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `results.json`, `episodes.jsonl`, and `<run>/final`, the folder to load. Resumes by checkpoint."""
        recipe: Recipe = context.recipe
        section = recipe.evaluation
        tasks = data.load_tasks(context)
        held_out = [*tasks.test[: section.tasks], *tasks.unseen[: section.unseen_tasks]]
        checkpoints = [name for name in ("cold_start", *SINGLE_ATTEMPT, "mixed_rl") if name in recipe.stages]
        rows: list[dict[str, Any]] = []
        for index, checkpoint in enumerate(checkpoints):
            rows += self._judged(context, checkpoint, held_out)
            context.progress.update(index + 1, len(checkpoints) + 1)
        write_json_atomic(context.folder / "results.json", {"rows": rows})
        last = checkpoints[-1]
        gap = {dtype: self._gap(context, last, held_out[:GAP_TASKS], dtype) for dtype in ("float32", "bfloat16")}
        final = context.run_folder / "final"
        shutil.rmtree(final, ignore_errors=True)
        shutil.copytree(context.artefact(last, "model"), final)
        return {
            "tokens": 0,
            "run_summary": {
                "pass_at_1": {
                    "cold_start": headline(rows, "cold_start", "test"),
                    "mixed_rl": headline(rows, last, "test"),
                    "unseen_tools": headline(rows, last, "unseen"),
                },
                "logprob_gap": {"dtype": recipe.run.dtype, **gap[recipe.run.dtype], "by_dtype": gap},
            },
        }

    def _judged(self, context: StageContext, checkpoint: str, tasks: list[Task]) -> list[dict[str, Any]]:
        file = context.folder / f"{checkpoint}.json"
        if file.is_file():
            return json.loads(file.read_text())
        section = context.recipe.evaluation
        attempts = 1 if checkpoint in SINGLE_ATTEMPT else section.attempts
        model, tokenizer = open_model(context, checkpoint), data.load_tokenizer(context)
        weak = context.recipe.run.weak_sandbox
        worker = RolloutWorker(model, tokenizer, at_once=SLOTS, max_tokens=section.window, weak_sandbox=weak)
        sampling = Sampling(temperature=section.temperature, top_p=section.top_p, max_tokens=section.max_tokens)
        try:
            episodes = worker.run(
                tasks, attempts=attempts, sampling=sampling, max_turns=section.max_turns, seed=context.recipe.run.seed
            )
        finally:
            worker.close()
        kept = episodes[::attempts]
        every = max(1, len(kept) // EPISODES_KEPT)
        records = [episode_to_json(episode, checkpoint=checkpoint) for episode in kept[::every]]
        write_jsonl(context.folder / f"episodes-{checkpoint}.jsonl", records)
        shutil.copyfile(context.folder / f"episodes-{checkpoint}.jsonl", context.folder / "episodes.jsonl")
        rows = result_rows(checkpoint, outcomes(episodes))
        write_json_atomic(file, rows)
        return rows

    def _gap(self, context: StageContext, checkpoint: str, tasks: list[Task], dtype: str) -> dict[str, float]:
        """Mean |log pi| difference between sampler and trainer in one dtype, with and without replay."""
        model = load_model(context.artefact(checkpoint, "model"))
        model.set_compute_dtype(torch.bfloat16 if dtype == "bfloat16" else None)
        section = context.recipe.mixed_rl
        tokenizer = data.load_tokenizer(context)
        worker = RolloutWorker(
            model,
            tokenizer,
            at_once=len(tasks),
            max_tokens=section.window,
            traced=True,
            weak_sandbox=context.recipe.run.weak_sandbox,
        )
        sampling = Sampling(temperature=section.temperature, top_p=0.95, max_tokens=section.max_tokens)
        try:
            episodes = worker.run(tasks, attempts=1, sampling=sampling, max_turns=section.max_turns, seed=3)
        finally:
            worker.close()
        samples = collect_samples(episodes, torch.zeros(len(episodes)), 1, keep_zero=True)
        config = objective_of(section)
        return {
            "replay": mismatch(model, samples, config),
            "without_replay": mismatch(model, samples, without_replay(config)),
        }
