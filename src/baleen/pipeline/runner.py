"""The stages of a recipe, one after the other, each exactly once, however often the run was killed in between.

A stage is done when its `done.json` stands; done stages are skipped, a stage that had begun is called again and goes on
from its own checkpoint. The runner keeps the clock and the memory's peak over all attempts, gives each stage its own
seed, and joins the stages' `run_summary` parts into the run's `summary.json`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import random
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from baleen.pipeline.folder import RunFolder, explain
from baleen.pipeline.loading import RecipeError
from baleen.pipeline.progress import RunProgress
from baleen.pipeline.recipe import Recipe
from baleen.pipeline.stage import Stage, StageContext

SAVE_CLOCK_EVERY_SECONDS = 5.0


def run(
    recipe: Recipe,
    folder: RunFolder,
    stages: Mapping[str, Stage],
    progress: RunProgress,
    *,
    began: float | None = None,
) -> dict[str, Any]:
    """Runs what is left of `recipe` in `folder` and returns the run's summary (also left as `summary.json`).

    `stages` are all that exist, by name; `began` is the `time.perf_counter()` of the command's start, when that was
    before this call. Raises `RecipeError` for an unknown stage and `RunFolderError` for a full or unwritable disk.
    """
    chosen = stages_of(recipe, stages)
    with folder.lock():
        clock = Clock(folder, began)
        finished = folder.read("summary.json")
        done: list[dict[str, Any]] = []
        try:
            for index, stage in enumerate(chosen, start=1):
                summary, skipped = _run_stage(index, stage, recipe, folder, progress, clock, len(chosen))
                done.append(summary)
                if not skipped:
                    finished = None
            if finished is None:
                finished = summarise(recipe, done, clock)
                folder.write("summary.json", finished)
        except BaseException as error:
            # The clock is a courtesy here: what stopped the run is the news, and it may be the disk itself.
            with contextlib.suppress(OSError):
                clock.save()
            explained = explain(error, folder.path)
            if explained:
                raise explained from error
            raise
    return finished


def stages_of(recipe: Recipe, stages: Mapping[str, Stage]) -> Sequence[Stage]:
    """The recipe's stages in order. Raises `RecipeError` for a name that no stage has."""
    for name in recipe.stages:
        if name not in stages:
            close = difflib.get_close_matches(name, stages, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"stages: no stage {name!r}{meant} There are: {', '.join(stages)}")
    return [stages[name] for name in recipe.stages]


def stage_seed(seed: int, stage: str) -> int:
    """A stage's own seed: stages do not shift each other's randomness when one of them changes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:7], "big")


def summarise(recipe: Recipe, stages: Sequence[Mapping[str, Any]], clock: Clock) -> dict[str, Any]:
    """The run's summary: what the stages report for the whole run, and what each of them cost."""
    merged: dict[str, Any] = {}
    for stage in stages:
        _merge(merged, stage.get("run_summary", {}))
    costs = [{key: stage[key] for key in ("name", "title", "seconds", "tokens")} for stage in stages]
    return {
        "recipe": recipe.name,
        "seed": recipe.run.seed,
        **merged,
        "wall_seconds": round(clock.wall_seconds, 3),
        "peak_rss_bytes": clock.peak_rss_bytes,
        "stages": costs,
    }


class Clock:
    """Seconds and peak memory over every attempt at this run, kept in `clock.json`."""

    def __init__(self, folder: RunFolder, began: float | None = None) -> None:
        kept = folder.read("clock.json") or {}
        self._folder = folder
        self._before: float = kept.get("wall_seconds", 0.0)
        self._began = time.perf_counter() if began is None else began
        self._peak: int = kept.get("peak_rss_bytes", 0)
        self._stages: dict[str, float] = dict(kept.get("stages", {}))
        self._stage: str | None = None
        self._stage_began = 0.0
        self._saved = self._began

    @property
    def wall_seconds(self) -> float:
        """Seconds that a process was at work on this run."""
        return self._before + time.perf_counter() - self._began

    @property
    def peak_rss_bytes(self) -> int:
        """The largest resident memory of one process: this one, or a child that has ended."""
        unit = 1 if sys.platform == "darwin" else 1024
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return max(self._peak, *(resource.getrusage(each).ru_maxrss * unit for each in who))

    def start(self, stage: str) -> None:
        """The named stage begins or goes on."""
        self._stage, self._stage_began = stage, time.perf_counter()

    def stop(self) -> float:
        """The running stage has ended; returns its seconds over all attempts."""
        self._settle()
        stage, self._stage = self._stage, None
        return self._stages.get(stage or "", 0.0)

    def tick(self) -> None:
        """Saves now and then, so that a kill loses a few seconds of the account at most."""
        if time.perf_counter() - self._saved >= SAVE_CLOCK_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes `clock.json`. Raises `OSError`."""
        self._settle()
        self._saved = time.perf_counter()
        kept = {"wall_seconds": self.wall_seconds, "peak_rss_bytes": self.peak_rss_bytes, "stages": self._stages}
        self._folder.write("clock.json", kept)

    def _settle(self) -> None:
        if self._stage is not None:
            now = time.perf_counter()
            self._stages[self._stage] = self._stages.get(self._stage, 0.0) + now - self._stage_began
            self._stage_began = now


class _TickingProgress:
    """A stage's progress, passed on to the terminal; each update is also when the clock may be saved."""

    def __init__(self, inner: RunProgress, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock

    def update(self, done: float, total: float, **figures: float) -> None:
        """See `Progress.update`."""
        self._clock.tick()
        self._inner.update(done, total, **figures)


def _run_stage(
    index: int,
    stage: Stage,
    recipe: Recipe,
    folder: RunFolder,
    progress: RunProgress,
    clock: Clock,
    count: int,
) -> tuple[dict[str, Any], bool]:
    """The stage's done record, and whether it had been done before."""
    path = folder.stage_folder(index, stage.name)
    file = str((path / "done.json").relative_to(folder.path))
    record = folder.read(file)
    if record is not None:
        progress.skip(index, count, stage.title, record["seconds"])
        return record, True
    _seed(recipe, stage.name)
    progress.begin(index, count, stage.title)
    clock.start(stage.name)
    context = StageContext(
        name=stage.name,
        recipe=recipe,
        folder=path,
        run_folder=folder.path,
        progress=_TickingProgress(progress, clock),
    )
    summary = stage.run(context)
    seconds = round(clock.stop(), 3)
    own = {"name": stage.name, "title": stage.title, "seconds": seconds, "tokens": int(summary.get("tokens", 0))}
    record = {**summary, **own}
    folder.write(file, record)
    clock.save()
    progress.end(seconds)
    return record, False


def _seed(recipe: Recipe, stage: str) -> None:
    # Here and not at the top: reading a recipe or printing its plan needs no torch.
    import numpy as np
    import torch

    seed = stage_seed(recipe.run.seed, stage)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)


def _merge(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
