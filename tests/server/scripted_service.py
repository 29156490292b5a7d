"""A service that says what it is told: the engine's interface without a model, so that every case can be made.

`answers` gives the text of a request from its prompt's text; `delay` is the time between tokens. The streams stay in
`streams`, so that a test can see which were cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from baleen.chat import TextStream, Tokenizer
from baleen.chat.markup import EOS
from baleen.engine.params import EngineError, SamplingParams
from baleen.engine.sequence import Generation
from baleen.engine.service import Chunk, QueueFull, ServiceClosed
from baleen.engine.trace import Trace

MAX_TOKENS = 4096
MOE_LAYERS, EXPERTS, LAYERS, TOPK = 2, 2, 3, 4


@dataclass(frozen=True)
class Info:
    """What the server reads of `ModelInfo`."""

    max_tokens: int
    vocab_size: int
    stop_ids: frozenset[int]


class ScriptedStream:
    """One token per chunk, each after `delay` seconds."""

    def __init__(self, service: ScriptedService, prompt: Sequence[int], params: SamplingParams) -> None:
        self.service, self.prompt, self.params = service, tuple(prompt), params
        text = service.answers(service.tokenizer.decode(self.prompt), params)
        self.tokens = tuple(service.tokenizer.encode(text)[: params.max_tokens])
        self.cancelled = False
        self.ended = False
        self.given = 0
        self._chunks = self._say()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    def cancel(self) -> None:
        self.cancelled = self.cancelled or not self.ended

    async def _say(self) -> AsyncIterator[Chunk]:
        service, text = self.service, TextStream(self.service.tokenizer, self.params.stop)
        for place, token in enumerate(self.tokens):
            await asyncio.sleep(service.delay)
            while service.standing and not self.cancelled:
                await asyncio.sleep(0.005)
            if self.cancelled:
                return
            if service.closed:
                raise ServiceClosed("the engine was closed")
            self.given = place + 1
            text.feed((token,))
            last = place + 1 == len(self.tokens) or service.aborting or text.stopped is not None
            reason = None
            if last:
                ended = token in (*service.info.stop_ids, *self.params.stop_ids) or text.stopped is not None
                reason = "abort" if service.aborting else "stop" if ended else "length"
                self.ended = True
            top = tuple((other, -1.0 - other) for other in range(self.params.top_logprobs))
            yield Chunk(
                tokens=(token,),
                logprobs=(-0.5,),
                top=(top,) if top else (),
                finish_reason=reason,
                generation=self.generation(place + 1, reason) if reason else None,
            )
            if last:
                return

    def generation(self, count: int, reason: str) -> Generation:
        forwarded = len(self.prompt) + count - 1
        experts = np.arange(forwarded * MOE_LAYERS * EXPERTS, dtype=np.int16) % 8
        trace = Trace(
            logprobs=np.full(count, -0.5, np.float32),
            kept_ids=np.repeat(np.asarray(self.tokens[:count], np.int32), 2),
            kept_offsets=np.arange(0, 2 * count + 1, 2, dtype=np.int32),
            experts=experts.reshape(forwarded, MOE_LAYERS, EXPERTS),
            selected=np.full((forwarded, LAYERS, TOPK), -1, np.int32),
            versions=np.full(count, self.service.version, np.int32),
        )
        return Generation(self.prompt, self.tokens[:count], reason, trace, reused_tokens=len(self.prompt) // 2)


def always(text: str) -> Callable[[str, SamplingParams], str]:
    """The same answer to everything."""
    return lambda prompt, params: text + EOS


FINE = always("Fine</think>Hello, world")


@dataclass
class ScriptedService:
    """The interface of `baleen.engine.service.Service`."""

    tokenizer: Tokenizer
    answers: Callable[[str, SamplingParams], str] = FINE
    delay: float = 0.0
    max_waiting: int = 256
    streams: list[ScriptedStream] = field(default_factory=list)
    standing: bool = False
    aborting: bool = False
    resumed: bool = False
    closed: bool = False
    cleared: int = 0
    version: int = 0

    @property
    def info(self) -> Info:
        return Info(MAX_TOKENS, self.tokenizer.vocab_size, frozenset({self.tokenizer.eos_id}))

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> ScriptedStream:
        if self.closed:
            raise ServiceClosed("the engine was closed")
        if sum(not (each.ended or each.cancelled) for each in self.streams) >= self.max_waiting:
            raise QueueFull(f"{self.max_waiting} wait")
        self.streams.append(ScriptedStream(self, prompt, params))
        return self.streams[-1]

    async def stats(self) -> dict[str, float]:
        if self.closed:
            raise ServiceClosed("the engine was closed")
        names = "running waiting pages_total pages_used pages_cached prompt_tokens cached_tokens generated_tokens"
        return dict.fromkeys(names.split(), 2.0) | {"version": self.version, "paused": float(self.standing)}

    async def pause(self, mode: str = "wait") -> None:
        self.standing, self.aborting = mode == "keep", mode == "abort"
        self.resumed = False
        while mode != "keep" and any(not (each.ended or each.cancelled) for each in self.streams):
            if self.resumed:
                raise EngineError("resumed before the pause was reached")
            await asyncio.sleep(0.005)

    async def resume(self) -> None:
        self.standing = self.aborting = False
        self.resumed = True

    async def update_weights(self, path: Path) -> int:
        if any(not (each.ended or each.cancelled) for each in self.streams) and not self.standing:
            raise EngineError("requests are running: pause the engine first")
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        self.version += 1
        return self.version

    async def clear_cache(self) -> None:
        self.cleared += 1

    async def close(self, drain_seconds: float = 0.0) -> None:
        self.closed = True
