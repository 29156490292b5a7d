"""The training loop of every text stage: batches by step, gradient accumulation, expert balancing, checkpoints.

A step's batches depend on the step number alone, so a run that was killed goes on to the same bits from its last
checkpoint, which holds the model, the optimiser and the step; metrics after it are cut away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from baleen.model.moe import MoE
from baleen.model.network import Model
from baleen.training.batch import Batch
from baleen.training.losses import Objective, batch_loss
from baleen.training.optimizer import Optimizer, schedule
from baleen.training.records import MetricsLog, fsync_folder

BALANCE_SPEED = 0.01
"""How far a gate's bias moves per step for an over- or underloaded expert. DeepSeek-V3 takes 0.001 over
15T tokens; runs of a few hundred steps need a quicker hand."""


class Report(Protocol):
    """Where progress goes (pipeline's progress bar, or nowhere)."""

    def update(self, done: float, total: float, **figures: float) -> None:
        """`done` of `total` steps, with figures to show."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The optimiser's course."""

    steps: int
    learning_rate: float
    warmup_steps: int = 10
    checkpoint_every: int = 50


def train(
    model: Model,
    batches: Callable[[int], Sequence[Batch]],
    objective: Objective,
    course: Schedule,
    folder: Path,
    report: Report,
    measure: Callable[[], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Trains in place, resuming from `folder`; returns the last row of `folder/metrics.jsonl`.

    `measure`, when given, adds its figures (such as the validation loss) to every row after a checkpoint.
    """
    optimizer = Optimizer(model.named_parameters())
    log = MetricsLog(folder / "metrics.jsonl")
    step, tokens = restore(folder, model, optimizer, log)
    row: dict[str, float] = {}
    while step < course.steps:
        began = time.perf_counter()
        rate = schedule(step, course.steps, course.learning_rate, warmup=course.warmup_steps)
        figures, counted = _step(model, optimizer, batches(step), objective, rate, step)
        step, tokens = step + 1, tokens + counted
        seconds = time.perf_counter() - began
        row = {"step": step, "tokens": tokens, **figures, "learning_rate": rate, "tokens_per_second": counted / seconds}
        if step % course.checkpoint_every == 0 or step == course.steps:
            if measure is not None:
                row |= measure()
            log.append(row)
            save(folder, model, optimizer, step, tokens)
        else:
            log.append(row)
        report.update(step, course.steps, **row)
    return {"tokens": float(tokens), **row}


def _step(
    model: Model, optimizer: Optimizer, batches: Sequence[Batch], objective: Objective, rate: float, step: int
) -> tuple[dict[str, float], int]:
    # The step's loss is the mean over all its predictions, however they are spread over batches.
    shares = [float(batch.weight.sum()) for batch in batches]
    parts: dict[str, list[tuple[float, float]]] = {}
    loads: list[Tensor] = []
    for batch, share in zip(batches, shares, strict=True):
        loss = batch_loss(model, batch, objective, step)
        (loss.total * (share / sum(shares))).backward()
        for name, value in loss.figures.items():
            parts.setdefault(name, []).append((value, share))
        loads = [a + b for a, b in zip(loads, loss.loads, strict=True)] if loads else loss.loads
    figures = {
        name: sum(value * share for value, share in values) / sum(share for _, share in values)
        for name, values in parts.items()
    }
    figures["gradient_norm"] = optimizer.step(rate)
    if objective.language_model and loads:
        figures["load_max"] = balance_experts(model, loads)
    return figures, sum(batch.token_count for batch in batches)


@torch.no_grad()
def balance_experts(model: Model, loads: Sequence[Tensor], speed: float = BALANCE_SPEED) -> float:
    """Moves each gate's bias towards an even load; returns the fullest expert's load over the mean."""
    gates = [module.gate for module in model.layers.modules() if isinstance(module, MoE)]
    worst = 0.0
    for gate, load in zip(gates, loads, strict=True):
        mean = load.float().mean()
        if gate.e_score_correction_bias is not None:
            gate.e_score_correction_bias += speed * torch.sign(mean - load.float())
        worst = max(worst, float(load.max() / mean))
    return worst


def save(folder: Path, model: Model, optimizer: Optimizer, step: int, tokens: int) -> None:
    """Writes `folder/checkpoint.pt` whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "tokens": tokens}
    partial = folder / "checkpoint.pt.partial"
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "checkpoint.pt")
    fsync_folder(folder)


def restore(folder: Path, model: Model, optimizer: Optimizer, log: MetricsLog) -> tuple[int, int]:
    """Loads the last checkpoint if there is one and cuts the log back to it; returns its step and tokens."""
    file = folder / "checkpoint.pt"
    step = tokens = 0
    if file.is_file():
        state: dict[str, Any] = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens = state["step"], state["tokens"]
    log.truncate_after(step)
    return step, tokens
