"""`baleen bench agent`: the sandbox's speed, its neighbours', what context strategies bring, and tau2-bench replayed.

Each part is measured in a process of its own and kept in a JSON file, as by the other benchmarks. tau2-bench is not
shipped; `$TAU2_BENCH` names a checkout of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from baleen.benchmarks.model_figures import Figure
from baleen.benchmarks.model_page import print_table, verdict
from baleen.benchmarks.results import Results, chosen_parts

FRESH_TARGET, CALL_TARGET, SLOWDOWN_TARGET = 25.0, 3.0, 1.2
TIMEOUT = 1800.0
PARTS: dict[str, dict[str, Any]] = {
    "sandbox": {"measure": "agent_sandbox"},
    "context": {"measure": "agent_context", "tasks": 50},
    "tau2": {"measure": "agent_tau2"},
}
"""The parts, and what the worker is asked."""

QUICK: dict[str, dict[str, Any]] = {"context": {"tasks": 4}, "tau2": {"most": 3}}


def bench_agent(
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    json_file: Path | None = None,
    out: Path = Path("runs/bench"),
) -> list[Figure]:
    """Measures the parts `only` (all by default), writes the file and prints the table; returns every figure.

    `json_file` (default `out/agent.json`) is added to when it exists. Raises `BenchmarkError` for an unknown part or a
    file of something else.
    """
    parts = chosen_parts(only, PARTS)
    file = json_file or out / ("agent-quick.json" if quick else "agent.json")
    results = Results(file, "agent", quick=quick, timeout=TIMEOUT)
    began = time.perf_counter()
    for name in parts:
        print(f"{name}:", file=sys.stderr, flush=True)
        if name == "tau2" and not os.environ.get("TAU2_BENCH"):
            results.skip(name, "$TAU2_BENCH names no checkout of tau2-bench")
            continue
        results.measure(name, PARTS[name] | (QUICK.get(name, {}) if quick else {}))
    made = figures(results)
    results.save(figures=[asdict(one) | {"verdict": verdict(one)} for one in made])
    print_table(made)
    aimed = [one for one in made if verdict(one) != "shown"]
    met = sum(one.met is True for one in aimed)
    print(f"\n{met} of {len(aimed)} targets met; {time.perf_counter() - began:.0f} s\n{file}")
    return made


def figures(results: Results) -> list[Figure]:
    """Every figure, in the order of the table."""
    made: list[Figure] = []
    for part, maker in (("sandbox", _sandbox), ("context", _context), ("tau2", _tau2)):
        entry = results.get(part)
        if entry is None:
            made.append(Figure(part, part, "measured", note=f"{part}: {results.problem(part)}"))
        else:
            made += maker(entry)
    return made


def _sandbox(entry: Mapping[str, Any]) -> list[Figure]:
    def timed(name: str, key: str, target: float) -> Figure:
        made = Figure("sandbox", name, f"less than {target:g} ms", ours=f"{entry[key]:.2f} ms")
        return replace(made, met=entry[key] < target)

    beside = Figure(
        "sandbox",
        "a call in 50 busy sessions beside four that attack",
        f"at most {SLOWDOWN_TARGET:g} times",
        ours=f"{entry['call_of_50_beside_attackers_ms']:.1f} ms",
        peer=f"{entry['call_of_50_alone_ms']:.1f} ms alone",
        ratio=entry["slowdown_beside_attackers"],
        met=entry["slowdown_beside_attackers"] <= SLOWDOWN_TARGET,
        note="fork bomb, 100 GB write, 10 GB allocation, endless print",
    )
    shown = [
        Figure("sandbox", name, "–", ours=f"{entry[key]:.2f} {unit}")
        for name, key, unit in (
            ("a program in a warm session", "program_call_ms", "ms"),
            ("back to the snapshot", "reset_ms", "ms"),
            ("100 sessions started and called", "hundred_started_and_called_s", "s"),
        )
    ]
    return [
        timed("a fresh sandbox, median", "fresh_sandbox_ms", FRESH_TARGET),
        timed("a Python call in a warm session, median", "python_call_ms", CALL_TARGET),
        beside,
        *shown,
    ]


def _context(entry: Mapping[str, Any]) -> list[Figure]:
    made = []
    for row in entry["rows"]:
        note = (
            f"{row['turns']:.1f} turns, {row['prompt_tokens']:,.0f} prompt tokens ({100 * row['cached']:.0f}% cached), "
            f"{row['sampled_tokens']:,.0f} sampled, made smaller {row['managed']:.1f} times"
        )
        ours = f"{100 * row['solved']:.0f}% solved"
        made.append(Figure("context", f"context: {row['strategy']}", "–", ours=ours, note=note))
    return made


def _tau2(entry: Mapping[str, Any]) -> list[Figure]:
    made = []
    for row in entry["rows"]:
        gold = row["agent"] == "gold"
        one = Figure("tau2", f"tau2-bench {row['domain']}: {row['agent']}", "all" if gold else "–")
        made.append(
            replace(
                one,
                ours=f"{row['full']} of {row['tasks']}",
                met=row["full"] == row["tasks"] if gold else None,
                note=f"{row['unscored']} with parts that only a model could judge",
            )
        )
    return made


def sandbox() -> dict[str, Any]:
    """The worker's part of `sandbox`."""
    from baleen.benchmarks.sandbox import measure

    return dict(measure())


def context(tasks: int) -> dict[str, Any]:
    """The worker's part of `context`."""
    from baleen.evaluation.context_comparison import compare

    return {"rows": [asdict(row) for row in compare(tasks)]}


def tau2(most: int | None = None) -> dict[str, Any]:
    """The worker's part of `tau2`."""
    from baleen.benchmarks.tau2 import measure

    return {"rows": [asdict(row) for row in measure(os.environ["TAU2_BENCH"], most=most)]}
