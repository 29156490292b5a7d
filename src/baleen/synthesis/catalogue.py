"""A set of tasks: synthesised from a seed, split, validated, counted, kept as JSON lines.

Splits never meet, whatever seed or size a catalogue was made with: a database's seed says by its remainder which split
it belongs to, and the content of a task without a database says it by its hash. `unseen` takes its tasks from the
environment whose tools are never trained on.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from baleen.agent.task import Task
from baleen.chat.messages import Message
from baleen.synthesis.alignment import wording
from baleen.synthesis.arithmetic import Problem, interpreted, mental
from baleen.synthesis.environments import ALIGNMENT, MENTAL, PYTHON
from baleen.synthesis.expressions import solution, sql
from baleen.synthesis.rewriting import plans
from baleen.synthesis.solution import run_solution
from baleen.synthesis.templates import SHAPES, Draw
from baleen.synthesis.validate import validate
from baleen.synthesis.world import World
from baleen.synthesis.worlds import TRAINED, UNSEEN, database, world

Split = Literal["train", "test", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)
DOMAINS: dict[str, float] = {"tools": 0.6, "arithmetic": 0.25, "alignment": 0.15}
TEST_SHARE = 10
TRIES = 200
MOST_WITHOUT_THOUGHT = 2


class SynthesisError(RuntimeError):
    """No valid task was found where one was wanted."""


@dataclass(frozen=True)
class Mix:
    """What a catalogue consists of."""

    domains: Mapping[str, float]
    """Domain to its weight."""

    thinking: float = 0.75
    """Share of tasks in thinking mode."""

    difficulties: Sequence[int] = (1, 2, 3, 4)
    """Drawn evenly, 1 to 4; the alignment domain makes two of them one."""

    invented: int = 24
    """How many invented worlds stand beside the four declared ones; 0 for none."""

    invented_share: float = 0.5
    """Share of the tool tasks that are set in invented worlds."""


@dataclass(frozen=True)
class TaskSet:
    """Tasks of all splits, in the order in which they were made."""

    tasks: tuple[Task, ...]

    def split(self, name: Split, domain: str | None = None) -> list[Task]:
        """The tasks of a split, of one domain or of all."""
        return [task for task in self.tasks if task.split == name and domain in (None, task.domain)]

    @property
    def train(self) -> list[Task]:
        """Tasks for training."""
        return self.split("train")

    @property
    def test(self) -> list[Task]:
        """Unseen tasks over unseen databases, in trained environments."""
        return self.split("test")

    @property
    def unseen(self) -> list[Task]:
        """Tasks in the environment that is never trained on."""
        return self.split("unseen")

    def statistics(self) -> dict[str, dict[str, int]]:
        """Tasks per `split/domain`: in all, per difficulty, per mode, and the number of environments."""
        counts: dict[str, Counter[str]] = {}
        places: dict[str, set[str]] = {}
        for task in self.tasks:
            place = f"{task.split}/{task.domain}"
            mode = "thinking" if task.thinking else "non-thinking"
            counts.setdefault(place, Counter()).update(("tasks", f"difficulty {task.difficulty}", mode))
            places.setdefault(place, set()).add(task.environment)
        return {
            place: {**dict(sorted(count.items())), "environments": len(places[place])}
            for place, count in counts.items()
        }

    def save(self, path: str | Path) -> None:
        """One task per line."""
        Path(path).write_text("".join(task.model_dump_json(exclude_defaults=True) + "\n" for task in self.tasks))

    @classmethod
    def load(cls, path: str | Path) -> TaskSet:
        """What `save` wrote."""
        lines = Path(path).read_text().splitlines()
        return cls(tuple(Task.model_validate_json(line) for line in lines if line.strip()))


def synthesise(
    seed: int,
    *,
    train: int,
    test: int,
    unseen: int,
    domains: Mapping[str, float] | Sequence[str] = tuple(DOMAINS),
    thinking: float = 0.75,
    difficulties: Sequence[int] = (1, 2, 3, 4),
    invented: int = 24,
    invented_share: float = 0.5,
) -> TaskSet:
    """That many validated tasks per split; the same arguments give the same tasks.

    `domains` names the domains, with weights or with the usual ones. Raises `SynthesisError` when the templates cannot
    give what is asked for, `ValueError` for an unknown domain.
    """
    weights = dict(domains) if isinstance(domains, Mapping) else {name: DOMAINS.get(name, 0.0) for name in domains}
    if unknown := sorted(set(weights) - set(DOMAINS)):
        raise ValueError(f"no domain {', '.join(unknown)}; known are {', '.join(DOMAINS)}")
    mix = Mix(weights, thinking, tuple(difficulties), invented, invented_share if invented else 0.0)
    tasks: list[Task] = []
    for split, count in zip(SPLITS, (train, test, unseen), strict=True):
        maker = _Maker(split, seed, mix)
        tasks += [maker.task(index) for index in range(count)]
    return TaskSet(tuple(tasks))


class _Maker:
    """Makes the tasks of one split."""

    def __init__(self, split: Split, seed: int, mix: Mix) -> None:
        self.split, self.seed, self.mix = split, seed, mix
        self.prompts: set[str] = set()

    def task(self, index: int) -> Task:
        """The index-th task: valid, and with a question that was not asked before as long as there are any."""
        rng = random.Random(f"{self.seed}:{self.split}:{index}")
        domain = "tools" if self.split == "unseen" else _weighted(rng, self.mix.domains)
        thinking = rng.random() < self.mix.thinking
        difficulty = rng.choice(list(self.mix.difficulties))
        if not thinking:
            # What takes several steps wants to be thought about.
            difficulty = min(difficulty, MOST_WITHOUT_THOUGHT)
        repeated: Task | None = None
        for _ in range(TRIES):
            task = self._draw(rng, f"{self.split}-{self.seed}-{index}", domain, thinking, difficulty)
            if task is None or validate(task):
                continue
            if task.messages[-1].content not in self.prompts:
                self.prompts.add(task.messages[-1].content or "")
                return task
            repeated = task
        if repeated is None:
            raise SynthesisError(f"no valid task of {domain}, difficulty {difficulty}, in {TRIES} tries")
        return repeated

    def _draw(self, rng: random.Random, name: str, domain: str, thinking: bool, difficulty: int) -> Task | None:
        if domain == "tools":
            return self._tool_task(rng, name, thinking, difficulty)
        if domain == "alignment":
            return self._plain_task(wording(rng, (difficulty + 1) // 2), name, ALIGNMENT, thinking)
        # A running sum is worked out in thoughts; without them a program has to do it.
        if not thinking or rng.random() < 0.5:
            return self._plain_task(interpreted(rng, difficulty), name, PYTHON, thinking)
        return self._plain_task(mental(rng, difficulty), name, MENTAL, thinking)

    def _tool_task(self, rng: random.Random, name: str, thinking: bool, difficulty: int) -> Task:
        where = self._world(rng)
        number = rng.randrange(10**6) * len(SPLITS) + SPLITS.index(self.split)
        rows = database(where.name, number)
        question = rng.choice(SHAPES[difficulty])(Draw(rows, rng))
        source = solution(question.expression, where)
        return Task(
            id=name,
            family="general",
            domain="tools",
            difficulty=difficulty,
            split=self.split,
            messages=(Message(role="user", content=question.text),),
            environment=where.name,
            verifier="query",
            thinking=thinking,
            metadata={
                "database": number,
                "tools": list(where.tool_names),
                "template": question.template,
                "plans": plans(question.expression, where, run_solution(source, rows.call).steps),
                "solution": source,
                "query": f"select {sql(question.expression)}",
                "language": "en",
            },
        )

    def _world(self, rng: random.Random) -> World:
        if self.split == "unseen":
            return rng.choice(UNSEEN)
        if rng.random() < self.mix.invented_share:
            return world(f"invented-{rng.randrange(self.mix.invented)}")
        return rng.choice(TRAINED)

    def _plain_task(self, problem: Problem, name: str, environment: str, thinking: bool) -> Task | None:
        held_out = hashlib.blake2b(problem.key.encode(), digest_size=4).digest()[0] % TEST_SHARE == 0
        if held_out != (self.split == "test"):
            return None
        family = {PYTHON: "interpreter", MENTAL: "reasoning", ALIGNMENT: "alignment"}[environment]
        metadata = {
            "tools": ["python"] if environment == PYTHON else [],
            "template": family,
            "solution": problem.source,
            "formula": problem.key,
            "language": "en",
        }
        return Task(
            id=name,
            family=family,
            domain="alignment" if environment == ALIGNMENT else "arithmetic",
            difficulty=problem.difficulty,
            split=self.split,
            messages=(Message(role="user", content=problem.text),),
            environment=environment,
            verifier="form" if environment == ALIGNMENT else "formula",
            thinking=thinking,
            metadata=metadata | problem.metadata,
        )


def _weighted(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
