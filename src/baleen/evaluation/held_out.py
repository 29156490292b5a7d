"""Held-out tasks: pass@1 and pass@k by domain, mode and difficulty, with confidence intervals.

Attempts that failed for infrastructure reasons are left out, never counted as wrong. pass@1's interval is over tasks:
attempts of one task are not independent, so a task counts once, with its mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.agent.episode import Episode
from baleen.agent.task import Task
from baleen.evaluation.statistics import pass_at_k_over_tasks


@dataclass(frozen=True)
class Outcome:
    """One task's attempts: n scored, c right."""

    task: Task
    n: int
    c: int


def outcomes(episodes: Sequence[Episode]) -> list[Outcome]:
    """Groups episodes by task; tasks without a scored attempt are left out."""
    tasks: dict[str, Task] = {}
    scores: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        tasks[episode.task.id] = episode.task
        outcome = episode.rewards.get("outcome")
        if episode.scored and outcome is not None:
            scores[episode.task.id].append(outcome)
    return [
        Outcome(tasks[name], len(values), sum(1 for value in values if value >= 1.0)) for name, values in scores.items()
    ]


def result_rows(checkpoint: str, results: Sequence[Outcome], *, seed: int = 0) -> list[dict[str, Any]]:
    """The table of one checkpoint: every domain, split, mode and difficulty that occurs, and `all` of each."""
    rows = []
    for domain, split, mode, difficulty in _cells(results):
        cell = [
            outcome
            for outcome in results
            if domain in ("all", outcome.task.domain)
            and split == outcome.task.split
            and mode in ("all", _mode(outcome.task))
            and difficulty in ("all", outcome.task.difficulty)
        ]
        attempts = min((outcome.n for outcome in cell), default=0)
        for k in (1, 4):
            if cell and attempts >= k:
                estimate = pass_at_k_over_tasks([(outcome.n, outcome.c) for outcome in cell], k, seed=seed)
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "domain": domain,
                        "split": split,
                        "mode": mode,
                        "difficulty": difficulty,
                        "k": k,
                        "value": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "n": len(cell),
                    }
                )
    return rows


def headline(rows: Sequence[dict[str, Any]], checkpoint: str, split: str) -> dict[str, Any]:
    """pass@1 of one checkpoint over all of a split: value, low, high, n."""
    for row in rows:
        wanted = (checkpoint, split, "all", "all", "all", 1)
        if tuple(row[key] for key in ("checkpoint", "split", "domain", "mode", "difficulty", "k")) == wanted:
            return {key: row[key] for key in ("value", "low", "high", "n")}
    return {"value": None, "low": None, "high": None, "n": 0}


def _cells(results: Sequence[Outcome]) -> Iterator[tuple[str, str, str, int | str]]:
    for split in sorted({outcome.task.split for outcome in results}):
        here = [outcome.task for outcome in results if outcome.task.split == split]
        domains = sorted({task.domain for task in here})
        difficulties: list[int | str] = ["all", *sorted({task.difficulty for task in here})]
        for domain in ["all", *domains]:
            for difficulty in difficulties:
                yield domain, split, "all", difficulty
            for mode in ("thinking", "non-thinking"):
                yield domain, split, mode, "all"


def _mode(task: Task) -> str:
    return "thinking" if task.thinking else "non-thinking"
