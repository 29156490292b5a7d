"""The data stages: environments and tasks first, because pre-training mixes their text; then tokenizer and corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from baleen.agent.task import Task
from baleen.chat.encoding import encode
from baleen.chat.messages import Message
from baleen.chat.tokenizer import Tokenizer
from baleen.pipeline.recipe import TrainSection
from baleen.pipeline.stage import StageContext
from baleen.synthesis.catalogue import TaskSet, synthesise
from baleen.synthesis.trajectories import demonstrate, offered_tools
from baleen.training import text
from baleen.training.demonstrations import Pool, demonstration_samples, fitting
from baleen.training.sample import Sample


class SynthesisStage:
    """Makes and validates the tasks of every domain and split."""

    name = "synthesis"
    title = "environments and tasks"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `tasks.jsonl`."""
        section = context.recipe.synthesis
        tasks = synthesise(
            context.recipe.run.seed,
            train=section.train_tasks,
            test=section.test_tasks,
            unseen=section.unseen_tasks,
            invented=section.invented,
        )
        tasks.save(context.folder / "tasks.jsonl")
        return {"statistics": tasks.statistics()}


class TokenizerStage:
    """Trains the byte-level BPE on corpus and demonstrations, and lays the corpus out as tokens."""

    name = "tokenizer"
    title = "tokenizer and corpus"

    def run(self, context: StageContext) -> dict[str, Any]:
        """Leaves `tokenizer/`, `train.npy` and `validation.npy`."""
        recipe = context.recipe
        training, validation = text.split(text.documents(recipe.corpus.path, recipe.corpus.max_bytes))
        context.progress.update(1, 4)
        conversations = [
            encode(demonstrate(task), offered_tools(task), task.thinking) for task in load_tasks(context).train[:1000]
        ]
        # Few documents settle the merges of text; most merges are wanted for the words of conversations.
        tokenizer = Tokenizer.train([*training[::32], *conversations], recipe.tokenizer.vocab_size)
        tokenizer.save(context.folder / "tokenizer")
        context.progress.update(2, 4)
        streams = {"train": text.tokenise(training, tokenizer), "validation": text.tokenise(validation, tokenizer)}
        for name, stream in streams.items():
            np.save(context.folder / f"{name}.npy", stream)
        return {"corpus_tokens": len(streams["train"]), "vocabulary": len(tokenizer)}


def load_tasks(context: StageContext) -> TaskSet:
    """The tasks that the synthesis stage left."""
    return TaskSet.load(context.artefact("synthesis", "tasks.jsonl"))


def load_tokenizer(context: StageContext) -> Tokenizer:
    """The tokenizer that the tokenizer stage left."""
    return Tokenizer.load(context.artefact("tokenizer", "tokenizer"))


def load_stream(context: StageContext, name: str) -> np.ndarray:
    """The corpus as one stream of token ids: `train` or `validation`."""
    return np.load(context.artefact("tokenizer", f"{name}.npy"))


def demonstrations(context: StageContext, tokenizer: Tokenizer, section: TrainSection) -> list[Pool]:
    """Solution-derived trajectories of the training tasks, by domain in the section's shares."""
    wanted = {name for name, share in section.domains.model_dump().items() if share > 0}
    samples: list[tuple[Task, list[Sample]]] = []
    file = context.artefact("synthesis", "tasks.jsonl")
    for task, told in _told(file, file.stat().st_mtime_ns):
        if task.domain in wanted:
            samples.append((task, demonstration_samples(told, offered_tools(task), task.thinking, tokenizer)))
    return pools_of(samples, section)


def pools_of(found: Sequence[tuple[Task, list[Sample]]], section: TrainSection) -> list[Pool]:
    """The samples of tasks by domain in the section's shares, in groups by environment, whose opening they share.

    Raises `SampleError` when a domain has no sample that fits a row.
    """
    groups: dict[str, dict[str, list[Sample]]] = {}
    for task, samples in found:
        groups.setdefault(task.domain, {}).setdefault(task.environment, []).extend(samples)
    pools = []
    for name, share in section.domains.model_dump().items():
        if share > 0 and name in groups:
            environments = list(groups[name].values())
            # Tool tasks share their domain's tokens as drawn; the few other environments share theirs evenly.
            parts = [environments] if name == "tools" else [[samples] for samples in environments]
            pools += [Pool(share / len(parts), part) for part in parts]
    return fitting(pools, section.tree_length)


@lru_cache(maxsize=1)
def _told(file: Path, changed: int) -> list[tuple[Task, list[Message]]]:
    """Every training task with its demonstration. Kept, because four stages of one process want the same of a file that
    was last `changed` then."""
    return [(task, demonstrate(task)) for task in TaskSet.load(file).train]


def tokenizer_folder(context: StageContext) -> Path:
    """Where the tokenizer lies, to be copied into checkpoints."""
    return context.artefact("tokenizer", "tokenizer")
