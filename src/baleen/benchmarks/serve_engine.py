"""The engine without a server: how fast it is alone, what drafts bring, what traces cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from baleen.agent.episode import Episode
from baleen.agent.policy import Sampling
from baleen.benchmarks.serve_prompts import conversations, random_prompts, tasks
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.engine import Engine
from baleen.engine.params import EngineOptions, SamplingParams, default_threads
from baleen.model.checkpoint import load_model
from baleen.rl.rollout import RolloutWorker

WARMUP_TOKENS = 16
WINDOW, MAX_TURNS = 1024, 6
"""Of an episode: what the recipe nano trains with."""


def _set_threads() -> int:
    """As many as the server's engine takes."""
    torch.set_num_threads(default_threads())
    return torch.get_num_threads()


def alone(
    *, path: str, at_once: int, prompt_tokens: int, max_tokens: int, repeats: int, max_running: int, drafts: bool
) -> dict[str, Any]:
    """Completion tokens per second of `Engine.generate`; the same work as `serve_load.throughput`."""
    threads = _set_threads()
    options = EngineOptions(max_running=max_running, traces=False, drafts=drafts)
    engine = Engine(load_model(path), Tokenizer.load(path), options)
    rates = []
    for repeat in range(-1, repeats):
        params = SamplingParams(max_tokens=WARMUP_TOKENS if repeat < 0 else max_tokens, ignore_end=True)
        prompts = random_prompts(path, at_once, prompt_tokens, seed=repeat + 1)
        began = time.perf_counter()
        made = engine.generate(prompts, params)
        if repeat >= 0:
            rates.append(sum(len(one.tokens) for one in made) / (time.perf_counter() - began))
    return {"rates": rates, "tokens_per_second": max(rates), "threads": threads}


def drafted(*, path: str, batches: Sequence[int], prompts: int, max_tokens: int, repeats: int) -> dict[str, Any]:
    """Conversations answered with drafts and without, in batches of each size: tokens per second, the share of drafts
    that stood, and whether the tokens are the same."""
    _set_threads()
    tokenizer = Tokenizer.load(path)
    asked = conversations(tokenizer, prompts)
    engines = {
        name: Engine(load_model(path), tokenizer, EngineOptions(traces=False, drafts=name == "on"))
        for name in ("off", "on")
    }
    for engine in engines.values():
        _answers(engine, asked[:1], 1, WARMUP_TOKENS)
    found: dict[str, Any] = {}
    for batch in batches:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        said: dict[str, list[tuple[int, ...]]] = {}
        before = engines["on"].stats()
        for _ in range(repeats):
            for name, engine in engines.items():
                engine.forget_prefixes()
                began = time.perf_counter()
                said[name] = _answers(engine, asked, batch, max_tokens)
                rates[name].append(sum(map(len, said[name])) / (time.perf_counter() - began))
        after = engines["on"].stats()
        drafts = after["drafted_tokens"] - before["drafted_tokens"]
        found[str(batch)] = {
            "rates": rates,
            "off": max(rates["off"]),
            "on": max(rates["on"]),
            "acceptance": (after["accepted_tokens"] - before["accepted_tokens"]) / max(1.0, drafts),
            "same_tokens": said["off"] == said["on"],
        }
    return {"batches": found}


def _answers(engine: Engine, prompts: Sequence[list[int]], batch: int, max_tokens: int) -> list[tuple[int, ...]]:
    """The answers to all prompts, so many at a time; each prompt keeps its seed."""
    answers: list[tuple[int, ...]] = []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        params = [SamplingParams(max_tokens=max_tokens, seed=first + index) for index in range(len(some))]
        answers += [one.tokens for one in engine.generate(some, params)]
    return answers


def traced(*, path: str, episodes: int, max_tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds of the same episodes with traces and without, by turns, as reinforcement learning samples them."""
    _set_threads()
    tokenizer, drawn = Tokenizer.load(path), tasks(episodes)
    workers = {
        name: RolloutWorker(
            load_model(Path(path)), tokenizer, at_once=episodes, max_tokens=WINDOW, traced=name == "traced"
        )
        for name in ("plain", "traced")
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    said: dict[str, list[list[tuple[int, ...]]]] = {}
    try:
        for repeat in range(-1, repeats):
            for name, worker in workers.items():
                worker.engine.weights_changed()  # as before every step of training: nothing is known from the last one
                began = time.perf_counter()
                made = worker.run(
                    drawn, attempts=1, sampling=Sampling(max_tokens=max_tokens), max_turns=MAX_TURNS, seed=0
                )
                said[name] = _sampled(made)
                if repeat >= 0:
                    seconds[name].append(time.perf_counter() - began)
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "times": seconds,
        "plain": statistics.median(seconds["plain"]),
        "traced": statistics.median(seconds["traced"]),
        "sampled_tokens": sum(len(turn) for turns in said["traced"] for turn in turns),
        "same_tokens": said["plain"] == said["traced"],
    }


def _sampled(episodes: Sequence[Episode]) -> list[list[tuple[int, ...]]]:
    return [[turn.sampled_tokens for turn in episode.completions] for episode in episodes]
