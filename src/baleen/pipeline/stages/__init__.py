"""The stages that a recipe can name, in their usual order."""

from __future__ import annotations

from baleen.pipeline.stage import Stage
from baleen.pipeline.stages.data import SynthesisStage, TokenizerStage
from baleen.pipeline.stages.text import ColdStartStage, IndexerWarmupStage, PretrainStage, SparseStage

ALL: tuple[Stage, ...] = (
    SynthesisStage(),
    TokenizerStage(),
    PretrainStage(),
    IndexerWarmupStage(),
    SparseStage(),
    ColdStartStage(),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in ALL}
