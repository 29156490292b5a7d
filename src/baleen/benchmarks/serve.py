"""`baleen bench serve PATH`: what a served model does on this machine, beside `generate` of `transformers`.

One run measures everything, each measurement in a process of its own that starts the program `baleen serve` where it
needs one. It writes JSON with every raw number and prints the figures with their targets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from baleen.benchmarks.model_figures import Figure
from baleen.benchmarks.model_page import print_table, verdict
from baleen.benchmarks.results import BenchmarkError, Results, chosen_parts
from baleen.benchmarks.serve_figures import figures
from baleen.benchmarks.serve_parts import PARTS, QUICK_SIZES, Bench, Sizes
from baleen.model.config import ModelConfig


def bench_serve(
    path: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    json_file: Path | None = None,
    out: Path = Path("runs/bench"),
) -> list[Figure]:
    """Measures the parts `only` (all by default) of the model in `path`, writes the file and prints the table; returns
    every figure.

    `json_file` (default `out/serve.json`) is added to when it exists. Raises `BenchmarkError` for an unknown part or a
    file of something else, and what reading the model's configuration raises.
    """
    parts = chosen_parts(only, PARTS)
    config = ModelConfig.from_pretrained(path)
    sizes = QUICK_SIZES if quick else Sizes()
    file = json_file or out / ("serve-quick.json" if quick else "serve.json")
    bench = Bench(str(path.resolve()), sizes, Results(file, "serve", quick=quick, timeout=sizes.timeout))
    model = {"path": bench.path, "config": config.to_json()}
    if bench.results.content.setdefault("model", model) != model:
        raise BenchmarkError(f"{file} holds another model's figures: give another --json")
    began = time.perf_counter()
    for name in parts:
        part_began = time.perf_counter()
        print(f"{name}:", file=sys.stderr, flush=True)
        PARTS[name](bench)
        print(f"{name} took {time.perf_counter() - part_began:.0f} s", file=sys.stderr, flush=True)
        made = figures(bench)
        bench.results.save(sizes=asdict(sizes), figures=[asdict(one) | {"verdict": verdict(one)} for one in made])
    print_table(made)
    aimed = [one for one in made if verdict(one) != "shown"]
    met = sum(one.met is True for one in aimed)
    print(f"\n{met} of {len(aimed)} targets met; {time.perf_counter() - began:.0f} s\n{file}")
    return made
