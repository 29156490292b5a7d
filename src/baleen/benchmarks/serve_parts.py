"""What `baleen bench serve` measures, part by part. A part asks for measurements; `serve_figures.py` reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baleen.benchmarks.results import Results


@dataclass(frozen=True)
class Sizes:
    """The lengths and counts of one run."""

    quick: bool = False
    at_once: int = 16
    """Requests of the batch, and the sequences that the server runs at once."""

    prompt: int = 200
    answer: int = 512
    trial: int = 64
    """Tokens on which the peer's fastest form is looked for."""

    repeats: int = 3
    prefix: int = 4096
    more: int = 32
    prefix_rounds: int = 5
    long: int = 32768
    quiet: int = 600
    context: int = 40000
    episodes: int = 64
    episode_tokens: int = 128
    """Tokens of one turn at most."""

    episode_repeats: int = 5
    conversations: int = 32
    soak_clients: int = 200
    soak_seconds: float = 300.0
    soak_requests: int = 64
    timeout: float = 1500.0


QUICK_SIZES = Sizes(
    quick=True,
    at_once=4,
    prompt=16,
    answer=24,
    trial=4,
    repeats=1,
    prefix=256,
    more=8,
    prefix_rounds=1,
    long=1024,
    quiet=50,
    context=4096,
    episodes=4,
    episode_tokens=16,
    episode_repeats=1,
    conversations=4,
    soak_clients=20,
    soak_seconds=5.0,
    soak_requests=8,
    timeout=120.0,
)


@dataclass(frozen=True)
class Bench:
    """A run: the model's folder, the sizes, the results."""

    path: str
    sizes: Sizes
    results: Results

    def measure(self, key: str, measure: str, **arguments: Any) -> None:
        """Measures the folder in a process of its own."""
        self.results.measure(key, {"measure": measure, "path": self.path, **arguments})


def measure_throughput(bench: Bench) -> None:
    """Many requests at once."""
    _measure_rates(bench, "throughput", bench.sizes.at_once)


def measure_single(bench: Bench) -> None:
    """One request at a time."""
    _measure_rates(bench, "single", 1)


def _measure_rates(bench: Bench, part: str, at_once: int) -> None:
    """The peer, then ours over HTTP and without it, each without drafts and with them."""
    sizes = bench.sizes
    work = {"at_once": at_once, "prompt_tokens": sizes.prompt, "max_tokens": sizes.answer, "repeats": sizes.repeats}
    bench.measure(f"{part}/peer", "serve_peer", **work, trial_tokens=sizes.trial)
    for drafts in (False, True):
        ours = {**work, "max_running": sizes.at_once, "drafts": drafts}
        bench.measure(f"{part}/http/{form_name(drafts)}", "serve_throughput", **ours)
        bench.measure(f"{part}/engine/{form_name(drafts)}", "serve_alone", **ours)


def form_name(drafts: bool) -> str:
    """How keys and notes call the two forms."""
    return "with drafts" if drafts else "plain"


def _measured_once(part: str, arguments: Callable[[Sizes], dict[str, Any]]) -> Callable[[Bench], None]:
    """A part that is one measurement of its own name, with what the sizes say."""
    return lambda bench: bench.measure(part, f"serve_{part}", **arguments(bench.sizes))


ONE_MEASUREMENT: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    # The first token after a known beginning.
    "prefix": lambda sizes: {"length": sizes.prefix, "more": sizes.more, "rounds": sizes.prefix_rounds},
    # A stream while a long prompt is read.
    "beside": lambda sizes: {
        "prompt_tokens": sizes.prompt,
        "long_tokens": sizes.long,
        "quiet": sizes.quiet,
        "max_tokens": sizes.context,
    },
    # Episodes with traces and without.
    "traces": lambda sizes: {
        "episodes": sizes.episodes,
        "max_tokens": sizes.episode_tokens,
        "repeats": sizes.episode_repeats,
    },
    # Conversations of the model's own domain, with drafts and without.
    "drafts": lambda sizes: {
        "batches": [1, sizes.at_once],
        "prompts": sizes.conversations,
        "max_tokens": sizes.answer,
        "repeats": sizes.repeats,
    },
    # Many clients for minutes.
    "soak": lambda sizes: {
        "clients": sizes.soak_clients,
        "seconds": sizes.soak_seconds,
        "distinct": sizes.soak_requests,
    },
}
"""The parts that are one measurement, and its arguments."""

PARTS: dict[str, Callable[[Bench], None]] = {
    "throughput": measure_throughput,
    "single": measure_single,
    **{part: _measured_once(part, arguments) for part, arguments in ONE_MEASUREMENT.items()},
}
"""The parts by name, in the order in which they run."""
