"""Episodes by the current policy: the engine samples, the environments answer, all at once and repeatable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from baleen.agent.engine_policy import EnginePolicy
from baleen.agent.environment import Environment
from baleen.agent.episode import Episode
from baleen.agent.limits import EpisodeLimits
from baleen.agent.loop import Rules, run_episodes
from baleen.agent.policy import Sampling, turn_seed
from baleen.agent.python_tool import PythonTool
from baleen.agent.task import Task
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions
from baleen.model.network import Model
from baleen.synthesis.environments import make_environment

ADMIT_EVERY = 8
"""Engine steps between admissions: a result comes back at every step, and a prefill costs as much as a step."""


class RolloutError(RuntimeError):
    """An environment of ours has a fault: to be mended, not to be trained around."""


class RolloutWorker:
    """Runs episodes of a model: its engine, and one sandboxed Python for the tasks that offer it."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        at_once: int = 64,
        max_tokens: int,
        traced: bool = False,
        weak_sandbox: bool = False,
    ) -> None:
        options = EngineOptions(max_running=at_once, max_tokens=max_tokens, admit_every=ADMIT_EVERY, traces=traced)
        self.engine = Engine(model, tokenizer, options)
        self.policy = EnginePolicy(self.engine, tokenizer, traced=traced)
        self.python = PythonTool(allow_weak=weak_sandbox)

    def run(
        self, tasks: Sequence[Task], *, attempts: int, sampling: Sampling, max_turns: int, seed: int
    ) -> list[Episode]:
        """`attempts` episodes of each task, those of one task next to each other; the same seed gives the same ones."""
        every = [task for task in tasks for _ in range(attempts)]
        samplings = [
            Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, turn_seed(seed, index), task.thinking)
            for index, task in enumerate(every)
        ]

        def environment(task: Task) -> Environment:
            return make_environment(task, self.python)

        episodes: list[Episode] = []

        async def collect() -> None:
            # No more at once than can run: a next turn that had to wait might find its pages given away.
            at_once = self.engine.options.max_running
            rules = Rules(EpisodeLimits(turns=max_turns))
            episodes.extend(await run_episodes(every, environment, self.policy, samplings, rules, at_once=at_once))

        # They are not collect's result: asyncio.run writes that out as text once, which takes these 0.2 s.
        asyncio.run(collect())
        broken = next((episode for episode in episodes if episode.status == "tool_error"), None)
        if broken is not None:
            raise RolloutError(f"a tool of task {broken.task.id} is at fault, so no training on it: {broken.error}")
        return episodes

    def close(self) -> None:
        """Ends the sandbox."""
        asyncio.run(self.python.close())
