"""The stages that learn from text: dense pre-training, indexer warm-up, sparse training, cold start, distillation.

They differ in their data, in what is frozen and in the loss; all run `training.loop.train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from baleen.chat.tokenizer import Tokenizer
from baleen.evaluation.sparsity import measure_sparsity, text_loss
from baleen.model.arithmetic import count_parameters
from baleen.model.checkpoint import load_model, save_model
from baleen.model.config import ModelConfig
from baleen.model.convert import add_indexer
from baleen.model.network import Model
from baleen.pipeline.recipe import Recipe, TrainSection
from baleen.pipeline.stage import StageContext
from baleen.pipeline.stages import data
from baleen.training import text
from baleen.training.batch import Batch, text_batch
from baleen.training.demonstrations import Pool, demonstration_batches
from baleen.training.loop import Schedule, train
from baleen.training.losses import Objective
from baleen.training.machine import prepare_machine
from baleen.training.needles import plant_in_rows
from baleen.training.records import write_json_atomic
from baleen.training.repeats import alphabet, by_frequency, repeat_batch

VALIDATION_ROWS = 16
NEEDLE_SHARE = 0.25
"""Share of the text rows that hide a needle."""

KL_STRIDE = 8
"""The sparse stages take the indexer's KL on every eighth query: an eighth of the cost, the same expectation."""
MICRO_TOKENS = 8192
"""Tokens of one forward; larger steps accumulate. Bounds the memory of a step."""


class PretrainStage:
    """Next-token prediction with dense attention on the corpus, mixed with tool-use text."""

    name = "pretrain"
    title = "dense pre-training"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/`."""
        recipe: Recipe = context.recipe
        tokenizer = data.load_tokenizer(context)
        prepare_machine(recipe.run.threads)
        model = new_model(recipe, tokenizer)
        validation = text.rows(
            data.load_stream(context, "validation"), VALIDATION_ROWS, recipe.pretrain.sequence_length, 1
        )
        result = train(
            model,
            mixed_batches(context, recipe.pretrain, tokenizer),
            Objective(sparse=False, mtp_weight=recipe.pretrain.mtp_weight),
            course(recipe.pretrain),
            context.folder,
            context.progress,
            lambda: {"validation_loss": text_loss(model, validation, sparse=False)},
        )
        save_model(model, context.folder / "model", tokenizer=data.tokenizer_folder(context))
        parameters = count_parameters(model.config)
        return {**result, "run_summary": {"parameters": {"total": parameters.total, "active": parameters.active}}}


class IndexerWarmupStage:
    """Everything frozen but the indexer, which learns the head-summed dense attention."""

    name = "indexer_warmup"
    title = "indexer warm-up"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/` and `sparsity.json`."""
        recipe: Recipe = context.recipe
        model = open_model(context, "pretrain")
        add_indexer(model, model.config, recipe.indexer_warmup.indexer, recipe.run.seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".indexer." in name and not name.startswith("mtp."))
        result = train(
            model,
            mixed_batches(context, recipe.indexer_warmup, data.load_tokenizer(context)),
            Objective(sparse=False, indexer_loss="dense", language_model=False),
            course(recipe.indexer_warmup),
            context.folder,
            context.progress,
        )
        write_json_atomic(context.folder / "sparsity.json", sparsity(context, model))
        save_model(model, context.folder / "model", tokenizer=data.tokenizer_folder(context))
        return result


class SparseStage:
    """All parameters train under the top-k selection; the indexer's input is detached."""

    name = "sparse"
    title = "sparse training"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/`, `sparsity.json` (after warm-up and now) and `selection.json`."""
        recipe: Recipe = context.recipe
        model = open_model(context, "indexer_warmup")
        result = train(
            model,
            mixed_batches(context, recipe.sparse, data.load_tokenizer(context)),
            Objective(
                sparse=True, indexer_loss="selected", indexer_stride=KL_STRIDE, mtp_weight=recipe.sparse.mtp_weight
            ),
            course(recipe.sparse),
            context.folder,
            context.progress,
        )
        now = sparsity(context, model)
        warmup = (context.artefact("indexer_warmup", "sparsity.json")).read_text()
        write_json_atomic(context.folder / "sparsity.json", {"after_warmup": json.loads(warmup), "after_sparse": now})
        save_model(model, context.folder / "model", tokenizer=data.tokenizer_folder(context))
        kept = {"validation_loss": now["validation_loss"], "attention_mass": now["attention_mass"]}
        return {**result, "run_summary": kept}


class ColdStartStage:
    """Fine-tuning on solution-derived trajectories; loss on what the model says alone."""

    name = "cold_start"
    title = "cold start"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `model/`."""
        section = context.recipe.cold_start
        tokenizer = data.load_tokenizer(context)
        return fine_tune(context, section, "sparse", data.demonstrations(context, tokenizer, section))


def fine_tune(context: StageContext, section: TrainSection, start: str, pools: Sequence[Pool]) -> dict[str, Any]:
    """Supervised training of stage `start`'s model on pools of samples; leaves `model/`."""
    model = open_model(context, start)
    seed = context.recipe.run.seed

    def batches(step: int) -> list[Batch]:
        return demonstration_batches(
            pools, row_tokens=section.tree_length, tokens=section.tokens_per_step, seed=seed * 1_000_003 + step
        )

    objective = Objective(sparse=True, indexer_loss="selected", indexer_stride=KL_STRIDE)
    result = train(model, batches, objective, course(section), context.folder, context.progress)
    save_model(model, context.folder / "model", tokenizer=data.tokenizer_folder(context))
    return {**result, "samples": sum(len(group) for pool in pools for group in pool.groups)}


def new_model(recipe: Recipe, tokenizer: Tokenizer) -> Model:
    """A fresh network for the tokenizer's vocabulary."""
    config = ModelConfig(**(recipe.network().model_dump() | {"vocab_size": len(tokenizer)}))
    model = Model(config)
    model.initialise(recipe.run.seed)
    return model.set_compute_dtype(compute_dtype(recipe))


def open_model(context: StageContext, stage: str) -> Model:
    """The model that a stage left, computing in the recipe's dtype."""
    prepare_machine(context.recipe.run.threads)
    return load_model(context.artefact(stage, "model")).set_compute_dtype(compute_dtype(context.recipe))


def compute_dtype(recipe: Recipe) -> torch.dtype | None:
    """The dtype of matrix products: None keeps the parameters' fp32."""
    return torch.bfloat16 if recipe.run.dtype == "bfloat16" else None


def course(section: TrainSection) -> Schedule:
    """The optimiser's course of a section."""
    return Schedule(section.steps, section.learning_rate, section.warmup_steps, section.checkpoint_every)


def mixed_batches(context: StageContext, section: TrainSection, tokenizer: Tokenizer) -> Callable[[int], list[Batch]]:
    """step -> its batches: repeats alone in the leading steps, then text and demonstrations in the section's shares."""
    stream = data.load_stream(context, "train")
    pools = data.demonstrations(context, tokenizer, section)
    tool_tokens = int(section.tokens_per_step * section.tools_share)
    rows = max(1, (section.tokens_per_step - tool_tokens) // section.sequence_length)
    per_forward = max(1, MICRO_TOKENS // section.sequence_length)
    root = context.recipe.run.seed * 1_000_003
    ids = by_frequency(sample.tokens for pool in pools for group in pool.groups for sample in group)

    def batches(step: int) -> list[Batch]:
        if step < section.repeats_steps:
            return [repeat_batch(alphabet(ids, step), root + step)]
        drawn = text.rows(stream, rows, section.sequence_length, root + step)
        drawn = plant_in_rows(drawn, NEEDLE_SHARE, tokenizer, root + step)
        made = [text_batch(drawn[i : i + per_forward], section.text_weight) for i in range(0, rows, per_forward)]
        return made + demonstration_batches(pools, row_tokens=section.tree_length, tokens=tool_tokens, seed=root + step)

    return batches


def sparsity(context: StageContext, model: Model) -> dict[str, Any]:
    """How well the sparse form stands in for the dense one, on held-out text."""
    recipe: Recipe = context.recipe
    length = recipe.sparse.sequence_length
    rows = text.rows(data.load_stream(context, "validation"), VALIDATION_ROWS, length, 1)
    folder: Path | None = context.folder if context.name == "sparse" else None
    return measure_sparsity(model, rows, data.load_tokenizer(context), selection_file=folder)
