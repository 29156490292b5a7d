"""Many clients for minutes, a third of whom leave in the middle: does anything come out wrong, or stay behind?

Every request that may come was answered alone before, by the same server; with seeds, each later answer must be the
same to the last token, whatever ran beside it. When all have gone, no page may be held, and the memory of the server's
two processes must have stopped growing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baleen.benchmarks.serve_client import DONE, Address, BrokenAnswer, Refused, choice_of, events
from baleen.benchmarks.serve_process import PAGES_USED, Served, served
from baleen.benchmarks.serve_prompts import random_prompts

SHARED_TOKENS, PROMPT_TOKENS = 64, (8, 160)
"""Every second prompt begins with the same tokens; each has so many of its own."""

ANSWER_TOKENS = (16, 128)
CONTEXT, MAX_WAITING = 512, 256
VANISHING = 1 / 3
MOST_EVENTS = 32
"""A client that leaves does so after at most so many events."""

TOO_MANY = 429
PAUSE_SECONDS = 0.05
PATIENCE = 30.0
"""Seconds in which all pages must be free when the last client has gone."""


@dataclass
class Soak:
    """What the clients saw."""

    requests: Sequence[Mapping[str, Any]]
    solo: list[list[int]]
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)


def soak(*, path: str, clients: int, seconds: float, distinct: int) -> dict[str, Any]:
    """Streams to `clients` clients for so many seconds, from `distinct` requests."""
    options = {"max-tokens": CONTEXT, "max-waiting": MAX_WAITING}
    with served(path, options) as server:
        return {"options": options, **asyncio.run(_soak(server, _requests(path, distinct), clients, seconds))}


def _requests(path: str, count: int) -> list[dict[str, Any]]:
    """Their prompts differ in length and half of them share a beginning; so do their ends."""
    rng = random.Random(0)
    shared = random_prompts(path, 1, SHARED_TOKENS, seed=1)[0]
    return [
        {
            "prompt": shared * (index % 2) + random_prompts(path, 1, rng.randint(*PROMPT_TOKENS), seed=2 + index)[0],
            "seed": index,
            "temperature": 1.0,
            "top_p": rng.choice((1.0, 0.9)),
            "max_tokens": rng.randint(*ANSWER_TOKENS),
            "ignore_eos": True,
            "return_token_ids": True,
        }
        for index in range(count)
    ]


async def _soak(server: Served, requests: Sequence[Mapping[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    solo = [(await _answer(server.address, request))[0] for request in requests]
    state = Soak(requests, solo)
    began = time.perf_counter()
    watching = asyncio.ensure_future(_watch(server, state, began))
    await asyncio.gather(*(_client(server.address, state, number, began + seconds) for number in range(clients)))
    lasted = time.perf_counter() - began
    watching.cancel()
    pages, waited = await _pages_left(server)
    return {
        "clients": clients,
        "lasted": lasted,
        **{name: state.counts[name] for name in ("answers", "vanished", "refused", "tokens")},
        "wrong": len(state.wrong),
        "what_was_wrong": state.wrong[:5],
        "pages_left": pages,
        "free_after": waited,
        "growth": {name: _growth([one[name] for one in state.memory]) for name in ("server", "engine")},
        "memory": state.memory,
    }


async def _client(address: Address, state: Soak, number: int, until: float) -> None:
    """One request after the other, as its own random numbers say."""
    rng = random.Random(f"client {number}")
    while time.perf_counter() < until:
        index = rng.randrange(len(state.requests))
        leaves = rng.randint(1, MOST_EVENTS) if rng.random() < VANISHING else None
        try:
            tokens, whole = await _answer(address, state.requests[index], leaves)
        except Refused as error:
            if error.status != TOO_MANY:
                state.wrong.append(str(error))
            state.counts["refused"] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        except (BrokenAnswer, OSError) as error:
            state.wrong.append(f"{type(error).__name__}: {error}")
        else:
            state.counts["answers" if whole else "vanished"] += 1
            state.counts["tokens"] += len(tokens)
            # Who leaves has seen the beginning of the same answer.
            if tokens != state.solo[index][: None if whole else len(tokens)]:
                state.wrong.append(f"request {index} was answered otherwise than alone")


async def _answer(address: Address, request: Mapping[str, Any], leaves: int | None = None) -> tuple[list[int], bool]:
    """The tokens of an answer, and whether these are all: a client may leave after so many events. Raises
    `BrokenAnswer` when the end is missing."""
    tokens: list[int] = []
    seen, finished, last = 0, False, b""
    async with contextlib.aclosing(events(address, request)) as stream:
        async for _, some in stream:
            for last in some:
                choice = choice_of(last)
                tokens += choice.get("token_ids", ())
                finished = finished or choice.get("finish_reason") is not None
            seen += len(some)
            if leaves is not None and seen >= leaves and last != DONE:
                return tokens, False
    if last != DONE or not finished:
        raise BrokenAnswer("a stream without its end")
    return tokens, True


async def _watch(server: Served, state: Soak, began: float) -> None:
    """Notes the resident bytes every second."""
    while True:
        state.memory.append({"at": time.perf_counter() - began, **server.resident()})
        await asyncio.sleep(1)


async def _pages_left(server: Served) -> tuple[int, float]:
    """The pages that are held though nobody asks for anything, and the seconds until they were none."""
    began = time.perf_counter()
    while True:
        pages, waited = int((await server.metrics())[PAGES_USED]), time.perf_counter() - began
        if not pages or waited > PATIENCE:
            return pages, waited
        await asyncio.sleep(PAUSE_SECONDS)


def _growth(values: Sequence[float]) -> float:
    """The most of the last quarter against the most of the second one; the first one is for warming up."""
    quarter = max(1, len(values) // 4)
    return max(values[-quarter:]) / max(values[quarter : 2 * quarter] or values[:1])
