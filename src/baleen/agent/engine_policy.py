"""Our own engine as a `Policy`: messages in, one turn out, with the exact tokens and their trace.

While episodes run together it is a barrier: the engine moves only when every running episode waits for it. Batches, and
with them the last bits of all numbers, then do not depend on how fast an environment was, and a run repeats exactly.
What a prompt is and how a turn is read: `exact_prompts.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from baleen.agent.exact_prompts import ExactPrompts, no_room
from baleen.agent.policy import Completion, Sampling
from baleen.chat.messages import Message, ToolSpec
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.engine import Engine
from baleen.engine.params import SamplingParams
from baleen.engine.sequence import Sequence as Running


class EnginePolicy:
    """Answers with `engine`. `traced` asks for experts and selected positions (training needs them)."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, traced: bool = False) -> None:
        self.engine, self.traced = engine, traced
        self.prompts = ExactPrompts(tokenizer)
        self._episodes = 0
        self._asked: list[_Asked] = []
        self._answering: dict[int, tuple[Running, asyncio.Future[Running]]] = {}
        self._driver: asyncio.Task[None] | None = None

    def episode_started(self) -> None:
        """One more episode will ask."""
        self._episodes += 1

    def episode_ended(self) -> None:
        """One of them will not ask any more."""
        self._episodes -= 1
        if self._episodes == 0:
            self.prompts.forget()

    async def complete(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> Completion:
        """The next turn. A prompt that does not fit the engine comes back as an empty, truncated turn."""
        prompt = self.prompts.prompt(messages, tools, sampling.thinking)
        room = self.engine.max_tokens - len(prompt)
        if room < 1:
            return no_room(prompt)
        params = self.params(sampling, room)
        asked = _Asked(sampling.seed, prompt, params, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.ensure_future(self._drive())
        try:
            running = await asked.answer
        except asyncio.CancelledError:  # an episode out of time, for one: its pages are for the others
            self._forget(asked)
            raise
        generation = running.generation
        assert generation is not None
        return self.prompts.turn(
            messages,
            tools,
            sampling.thinking,
            prompt=generation.prompt,
            sampled=generation.tokens,
            trace=generation.trace,
            was_cut=generation.finish_reason == "length",
        )

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling) -> int:
        """The length of the prompt that `complete` would sample after."""
        return len(self.prompts.prompt(messages, tools, sampling.thinking))

    def params(self, sampling: Sampling, room: int) -> SamplingParams:
        """The engine's form of `sampling`, within `room` tokens."""
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),
            seed=sampling.seed,
            trace=self.traced,
        )

    async def _drive(self) -> None:
        """Steps the engine for as long as anybody waits for it."""
        idle = 0
        try:
            while self._asked or self._answering:
                if len(self._asked) + len(self._answering) < self._episodes:
                    idle += 1  # somebody still talks to an environment; after a few turns of the loop, sleep for real
                    await asyncio.sleep(0 if idle < 100 else 0.0005)
                    continue
                idle = 0
                for asked in sorted(self._asked, key=lambda each: each.seed):
                    sequence = self.engine.submit(asked.prompt, asked.params)
                    self._answering[id(sequence)] = (sequence, asked.answer)
                self._asked.clear()
                for sequence in self.engine.step():
                    self._answering.pop(id(sequence))[1].set_result(sequence)
                await asyncio.sleep(0)
        except BaseException as error:
            waiting = [answer for _, answer in self._answering.values()]
            for answer in [*waiting, *(asked.answer for asked in self._asked)]:
                if not answer.done():
                    answer.set_exception(error)
            raise

    def _forget(self, asked: _Asked) -> None:
        """Nobody waits for this turn any more."""
        self._asked = [each for each in self._asked if each is not asked]
        for key, (sequence, answer) in list(self._answering.items()):
            if answer is asked.answer:
                self.engine.cancel(sequence)
                del self._answering[key]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A turn that waits for the engine."""

    seed: int
    prompt: list[int]
    params: SamplingParams
    answer: asyncio.Future[Running]
