"""The stages that learn from episodes: two specialists, their distillation into one model, and one mixed stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from baleen.agent.episode import Episode
from baleen.agent.policy import Sampling
from baleen.agent.records import episode_to_json, write_jsonl
from baleen.agent.task import Task
from baleen.model.checkpoint import save_model
from baleen.pipeline.recipe import Recipe, ReinforcementSection
from baleen.pipeline.stage import StageContext
from baleen.pipeline.stages import data
from baleen.pipeline.stages.text import fine_tune, open_model
from baleen.rl.grpo import GrpoConfig, advantages_of, collect_samples, judge, update
from baleen.rl.mixture import draw_tasks
from baleen.rl.rewards import RewardConfig
from baleen.rl.rollout import RolloutWorker
from baleen.rl.samples import samples_from_episode
from baleen.synthesis.trajectories import demonstrate, offered_tools
from baleen.training.demonstrations import demonstration_samples
from baleen.training.loop import restore, save
from baleen.training.optimizer import Optimizer
from baleen.training.records import MetricsLog
from baleen.training.sample import Sample, plain_sample

SLOTS = 256
"""Episodes at once where their number is free: 256 take half as long again as 128."""


class ReinforcementStage:
    """GRPO from another stage's model, over the domains of its own recipe section."""

    def __init__(self, name: str, title: str, start: str) -> None:
        self.name, self.title, self.start = name, title, start

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/`, `metrics.jsonl` and the last step's `episodes.jsonl`."""
        section: ReinforcementSection = getattr(context.recipe, self.name)
        model = open_model(context, self.start)
        for name, parameter in model.named_parameters():
            # The indexer keeps to what it learned from its own KL; RL moves the trunk (selection is replayed).
            parameter.requires_grad_(".indexer." not in name and not name.startswith("mtp."))
        reference = open_model(context, self.start) if section.beta else None
        optimizer = Optimizer(model.named_parameters(), muon=False, gain_ratio=section.gain_ratio, weight_decay=0.0)
        log = MetricsLog(context.folder / "metrics.jsonl")
        step, tokens = restore(context.folder, model, optimizer, log)
        tasks = data.load_tasks(context).train
        count = section.tasks_per_step * section.group_size
        worker = RolloutWorker(
            model,
            data.load_tokenizer(context),
            at_once=count,
            max_tokens=section.window,
            traced=True,
            weak_sandbox=context.recipe.run.weak_sandbox,
        )
        row: dict[str, float] = {}
        try:
            while step < section.steps:
                began = time.perf_counter()
                worker.engine.weights_changed()
                drawn = draw_tasks(
                    tasks,
                    section.domains.model_dump(),
                    count=section.tasks_per_step,
                    step=step,
                    seed=context.recipe.run.seed,
                )
                episodes = worker.run(
                    drawn,
                    attempts=section.group_size,
                    sampling=sampling_of(section),
                    max_turns=section.max_turns,
                    seed=context.recipe.run.seed * 1_000_003 + step,
                )
                sampled_seconds = time.perf_counter() - began
                parts = judge(episodes, rewards_of(section))
                advantages = advantages_of(parts, section.group_size)
                samples = collect_samples(episodes, advantages, section.group_size, keep_zero=section.beta > 0)
                figures: dict[str, float] = {}
                if samples:
                    figures = update(
                        model,
                        reference,
                        optimizer,
                        samples,
                        objective_of(section),
                        learning_rate=section.learning_rate * min(1.0, (step + 1) / 3),
                        count=len(episodes),
                    )
                sampled = sum(len(c.sampled_tokens) for e in episodes for c in e.completions)
                step, tokens = step + 1, tokens + sampled
                seconds = time.perf_counter() - began
                row = {
                    "step": step,
                    "tokens": tokens,
                    **_outcomes(episodes, parts),
                    **figures,
                    "groups_used": float(len({sample.group for sample in samples if sample.advantage})),
                    "length_mean": sampled / len(episodes),
                    "tokens_per_second": sampled / seconds,
                    "rollout_seconds": sampled_seconds,
                    "update_seconds": seconds - sampled_seconds,
                }
                log.append(row)
                if step % section.checkpoint_every == 0 or step == section.steps:
                    rows = [episode_to_json(episode, checkpoint=self.name) for episode in episodes]
                    write_jsonl(context.folder / "episodes.jsonl", rows)
                    save(context.folder, model, optimizer, step, tokens)
                context.progress.update(step, section.steps, **row)
        finally:
            worker.close()
        save_model(model, context.folder / "model", tokenizer=data.tokenizer_folder(context))
        return {"tokens": float(tokens), **row}


class DistillStage:
    """The specialists' verified trajectories, each under the exact tokens it was sampled with, teach one model."""

    name = "distill"
    title = "distillation"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/`. A task that its specialist does not solve keeps its demonstration in the mix, or what is
        learned would grow easier than what is asked; so does a domain without a specialist."""
        recipe: Recipe = context.recipe
        tokenizer = data.load_tokenizer(context)
        tasks = data.load_tasks(context).train
        found: list[tuple[Task, list[Sample]]] = []
        told = [task for task in tasks if task.domain == "alignment"][: recipe.distill.tasks_per_specialist]
        asked = 0
        for name in ("specialist_tools", "specialist_arithmetic"):
            section: ReinforcementSection = getattr(recipe, name)
            drawn = draw_tasks(
                tasks,
                section.domains.model_dump(),
                count=recipe.distill.tasks_per_specialist,
                step=1_000_000,
                seed=recipe.run.seed,
            )
            worker = RolloutWorker(
                open_model(context, name),
                tokenizer,
                at_once=SLOTS,
                max_tokens=section.window,
                weak_sandbox=recipe.run.weak_sandbox,
            )
            try:
                episodes = worker.run(
                    drawn,
                    attempts=1,
                    sampling=sampling_of(section),
                    max_turns=section.max_turns,
                    seed=recipe.run.seed + 7,
                )
            finally:
                worker.close()
            asked += len(episodes)
            for index, episode in enumerate(episodes):
                if episode.rewards.get("outcome") == 1.0:
                    samples = samples_from_episode(episode, group=0, advantage=1.0, index=index)
                    plain = [plain_sample(sample.tokens.tolist(), sample.sampled.tolist()) for sample in samples]
                    found.append((episode.task, plain))
                else:
                    told.append(episode.task)
            context.progress.update(0, recipe.distill.steps, asked=float(asked), verified=float(len(found)))
        kept = len(found)
        for task in told:
            shown = demonstration_samples(demonstrate(task), offered_tools(task), task.thinking, tokenizer)
            found.append((task, shown))
        result = fine_tune(context, recipe.distill, "cold_start", data.pools_of(found, recipe.distill))
        return {**result, "trajectories_asked": asked, "trajectories_verified": kept, "demonstrations": len(told)}


def sampling_of(section: ReinforcementSection) -> Sampling:
    """How a section's rollouts are sampled."""
    return Sampling(temperature=section.temperature, top_p=section.top_p, max_tokens=section.max_tokens)


def rewards_of(section: ReinforcementSection) -> RewardConfig:
    """A section's reward shaping."""
    return RewardConfig(
        length_penalty=section.length_penalty,
        length_budget=section.length_budget,
        language_weight=section.language_weight,
    )


def objective_of(section: ReinforcementSection) -> GrpoConfig:
    """A section's GRPO constants and switches."""
    return GrpoConfig(
        clip=section.clip,
        beta=section.beta,
        delta=section.delta,
        temperature=section.temperature,
        keep_routing=section.keep_routing,
        keep_selection=section.keep_selection,
        keep_sampling_mask=section.keep_sampling_mask,
        row_tokens=section.row_tokens,
        minibatches=section.minibatches,
        max_norm=section.max_norm,
    )


def _outcomes(episodes: Sequence[Episode], parts: Sequence[dict[str, float | None]]) -> dict[str, float]:
    scored = [(episode, part) for episode, part in zip(episodes, parts, strict=True) if part["total"] is not None]
    by_domain: dict[str, list[float]] = defaultdict(list)
    for episode, part in scored:
        by_domain[episode.task.domain].append(part["outcome"] or 0.0)

    def mean(name: str) -> float:
        return float(np.mean([part[name] or 0.0 for _, part in scored])) if scored else 0.0

    return {
        "reward": mean("total"),
        "outcome": mean("outcome"),
        "reward_length": mean("length"),
        "reward_language": mean("language"),
        "scored": float(len(scored)),
        **{f"outcome_{domain}": float(np.mean(values)) for domain, values in sorted(by_domain.items())},
    }
