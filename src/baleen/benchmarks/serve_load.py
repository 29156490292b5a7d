"""The load on a server: many requests at once, a prompt that is known already, a stream beside a long prompt.

Every function is a process of its own, which starts `baleen serve` and is its only client. Requests are lists of token
ids and ignore the end token, so that every answer has the length that was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from baleen.benchmarks.serve_client import DONE, Address, choice_of, complete, events
from baleen.benchmarks.serve_process import CACHED_TOKENS, served
from baleen.benchmarks.serve_prompts import random_prompts

WARMUP_TOKENS = 16
PATIENCE = 3600
"""Seconds that a request may take: the server must not end what is measured."""


def throughput(
    *, path: str, at_once: int, prompt_tokens: int, max_tokens: int, repeats: int, max_running: int, drafts: bool
) -> dict[str, Any]:
    """Completion tokens per second of `at_once` requests, from the first one sent to the last one answered, in one
    piece and streamed by turns. No prompt comes twice."""
    options = {"max-running": max_running, "request-seconds": PATIENCE, "drafts": drafts}
    rates: dict[str, list[float]] = {"whole": [], "streamed": []}
    with served(path, options) as server:
        for repeat in range(-1, repeats):
            for index, (form, found) in enumerate(rates.items()):
                prompts = random_prompts(path, at_once, prompt_tokens, seed=2 * (repeat + 1) + index)
                tokens = WARMUP_TOKENS if repeat < 0 else max_tokens
                rate = asyncio.run(_rate(server.address, prompts, tokens, streamed=form == "streamed"))
                if repeat >= 0:
                    found.append(rate)
    best = {"tokens_per_second": max(rates["whole"]), "streamed": max(rates["streamed"])}
    return {"options": options, "rates": rates, **best}


async def _rate(address: Address, prompts: Sequence[list[int]], max_tokens: int, *, streamed: bool) -> float:
    answer = _streamed_tokens if streamed else _whole_tokens
    bodies = [_body(prompt, max_tokens, seed) for seed, prompt in enumerate(prompts)]
    began = time.perf_counter()
    counts = await asyncio.gather(*(answer(address, body) for body in bodies))
    seconds = time.perf_counter() - began
    if set(counts) != {max_tokens}:
        raise RuntimeError(f"answers of {sorted(set(counts))} tokens, not of {max_tokens}")
    return sum(counts) / seconds


async def _whole_tokens(address: Address, body: Mapping[str, Any]) -> int:
    return int((await complete(address, body))["usage"]["completion_tokens"])


async def _streamed_tokens(address: Address, body: Mapping[str, Any]) -> int:
    """The usage, which the event before `[DONE]` tells; the others are only counted past."""
    last, done = b"", b""
    async for _, some in events(address, {**body, "stream_options": {"include_usage": True}}):
        last, done = [last, done, *some][-2:]
    if done != DONE:
        raise RuntimeError("a stream ended without [DONE]")
    return int(json.loads(last)["usage"]["completion_tokens"])


def prefix(*, path: str, length: int, more: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first token of a new prompt, and of one that begins with the same `length` tokens. Nothing else
    runs; every round has a prefix of its own."""
    first, second = [], []
    options = {"max-tokens": 2 * length}
    with served(path, options) as server:
        for seed in range(-1, rounds):  # the first round warms up
            known, tail = random_prompts(path, 1, length, seed)[0], random_prompts(path, 1, more, -seed - 2)[0]
            seconds = [asyncio.run(_first_token(server.address, prompt)) for prompt in (known, known + tail)]
            if seed >= 0:
                first.append(seconds[0])
                second.append(seconds[1])
        hits = asyncio.run(server.metrics())[CACHED_TOKENS]
    ratio = statistics.median(late / early for early, late in zip(first, second, strict=True))
    return {"options": options, "first": first, "second": second, "ratio": ratio, "cached_tokens": hits}


async def _first_token(address: Address, prompt: list[int]) -> float:
    began = time.perf_counter()
    async with contextlib.aclosing(_token_times(address, _body(prompt, 2, 0))) as times:
        async for at, _ in times:
            return at - began
    raise RuntimeError("a stream without tokens")


def beside(*, path: str, prompt_tokens: int, long_tokens: int, quiet: int, max_tokens: int) -> dict[str, Any]:
    """Seconds between the tokens of a stream: alone, while a prompt of `long_tokens` is read, and alone again."""
    options = {"max-tokens": max_tokens, "request-seconds": PATIENCE}
    with served(path, options) as server:
        found = asyncio.run(_beside(server.address, path, prompt_tokens, long_tokens, quiet, max_tokens))
    return {"options": options, **found}


async def _beside(
    address: Address, path: str, prompt_tokens: int, long_tokens: int, quiet: int, max_tokens: int
) -> dict[str, Any]:
    mine, other = random_prompts(path, 1, prompt_tokens, 1)[0], random_prompts(path, 1, long_tokens, 2)[0]
    await complete(address, _body(random_prompts(path, 1, prompt_tokens, 3)[0], WARMUP_TOKENS, 0))
    body = _body(mine, max_tokens - prompt_tokens - 1, 0)
    gaps: dict[str, list[float]] = {"quiet": [], "beside": [], "after": []}
    reading: asyncio.Task[float] | None = None
    async with contextlib.aclosing(_token_times(address, body)) as times:
        before = None
        async for at, count in times:
            phase = "quiet" if reading is None else "after" if reading.done() else "beside"
            if before is not None:
                # What arrives in one piece was waited for once.
                gaps[phase] += [at - before, *[0.0] * (count - 1)]
            before = at
            if reading is None and len(gaps["quiet"]) >= quiet:
                reading = asyncio.ensure_future(_seconds(address, _body(other, 1, 1)))
            if len(gaps["after"]) >= quiet:
                break
    if reading is None or not gaps["after"]:
        raise RuntimeError("the stream ended before the long prompt was read: it needs more tokens")
    found = {phase: _spread(values) for phase, values in gaps.items() if values}
    return {**found, "prompt_seconds": reading.result(), "gaps": gaps}


async def _seconds(address: Address, body: Mapping[str, Any]) -> float:
    began = time.perf_counter()
    await complete(address, body)
    return time.perf_counter() - began


def _spread(gaps: Sequence[float]) -> dict[str, float]:
    ordered = sorted(gaps)
    return {
        "tokens": len(gaps),
        "median": statistics.median(gaps),
        "mean": statistics.fmean(gaps),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


async def _token_times(address: Address, body: Mapping[str, Any]) -> AsyncGenerator[tuple[float, int]]:
    """When tokens came, and how many."""
    async with contextlib.aclosing(events(address, {**body, "return_token_ids": True})) as stream:
        async for at, some in stream:
            if count := sum(len(choice_of(event).get("token_ids", ())) for event in some):
                yield at, count


def _body(prompt: list[int], max_tokens: int, seed: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "seed": seed, "temperature": 1.0, "ignore_eos": True}
