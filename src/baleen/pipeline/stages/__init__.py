"""The stages that a recipe can name, in their usual order."""

from __future__ import annotations

from baleen.pipeline.stage import Stage
from baleen.pipeline.stages.data import SynthesisStage, TokenizerStage
from baleen.pipeline.stages.evaluation import EvaluationStage
from baleen.pipeline.stages.reinforcement import DistillStage, ReinforcementStage
from baleen.pipeline.stages.text import ColdStartStage, IndexerWarmupStage, PretrainStage, SparseStage

ALL: tuple[Stage, ...] = (
    SynthesisStage(),
    TokenizerStage(),
    PretrainStage(),
    IndexerWarmupStage(),
    SparseStage(),
    ColdStartStage(),
    ReinforcementStage("specialist_tools", "specialist: tool use", "cold_start"),
    ReinforcementStage("specialist_arithmetic", "specialist: arithmetic", "cold_start"),
    DistillStage(),
    ReinforcementStage("mixed_rl", "mixed RL", "distill"),
    EvaluationStage(),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in ALL}
