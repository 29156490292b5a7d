"""The prompts of `baleen bench serve`: random ordinary tokens, and conversations that the model was trained on."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

from baleen.agent.task import Task
from baleen.chat.encoding import segments
from baleen.chat.tokenizer import Tokenizer
from baleen.synthesis.catalogue import synthesise
from baleen.synthesis.environments import SyntheticEnvironment

CATALOGUE_SEED = 0


def random_prompts(path: str, count: int, length: int, seed: int) -> list[list[int]]:
    """`count` lists of `length` ids that are no special tokens, the same for the same arguments."""
    ids, rng = _ordinary_ids(path), random.Random(f"prompts {seed}")  # as a number, -1 would be 1
    return [rng.choices(ids, k=length) for _ in range(count)]


def tasks(count: int) -> list[Task]:
    """Held-out tasks of the synthesis, of all domains."""
    return synthesise(CATALOGUE_SEED, train=0, test=count, unseen=0).test


def conversations(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """The opening prompts of so many tool tasks."""
    drawn = synthesise(CATALOGUE_SEED, train=0, test=count, unseen=0, domains=("tools",)).test
    return [_opening(tokenizer, task) for task in drawn]


def _opening(tokenizer: Tokenizer, task: Task) -> list[int]:
    messages, tools = asyncio.run(SyntheticEnvironment(task).reset(task))
    return tokenizer.encode_segments(segments(messages, tools, task.thinking))[0]


def _ordinary_ids(path: str) -> list[int]:
    folder = Path(path)
    added = {one["id"] for one in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    return [token for token in range(vocabulary) if token not in added]
