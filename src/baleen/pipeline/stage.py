"""A stage of a recipe: config in, artefacts out, resumable at any moment.

A stage writes only below its own folder and through `StageContext`; it is done when `summary` was saved. Started again
after a kill, it goes on from its last checkpoint to the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Progress(Protocol):
    """Where a stage tells how far it is; the terminal shows it."""

    def update(self, done: float, total: float, **figures: float) -> None:
        """`done` of `total` units are behind us; `figures` are shown beside the bar."""
        ...


@dataclass(frozen=True)
class StageContext:
    """What a stage may touch."""

    name: str
    recipe: Any
    """The whole frozen `Recipe` (pipeline/recipe.py); a stage reads its own section and the shared ones."""

    folder: Path
    """`<run>/stages/<nn>-<name>`, made before `run` is called."""

    run_folder: Path
    progress: Progress

    def artefact(self, stage: str, name: str) -> Path:
        """The path of another stage's artefact."""
        matches = sorted((self.run_folder / "stages").glob(f"*-{stage}"))
        if not matches:
            raise FileNotFoundError(f"stage {stage!r} has left nothing in {self.run_folder}; run the stages before it")
        return matches[0] / name


class Stage(Protocol):
    """One step of the pipeline."""

    name: str
    title: str

    def run(self, context: StageContext) -> dict[str, Any]:
        """Does the work, resuming if it had begun, and returns its JSON-able summary."""
        ...
