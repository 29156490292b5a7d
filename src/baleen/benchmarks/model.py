"""`baleen bench model`: what the model costs on this machine, beside `transformers` and beside its own dense form.

One run measures everything, each measurement in a process of its own, so that the ratios stand side by side. It writes
JSON with every raw timing, prints the figures with their targets, and draws cost against length.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from baleen.benchmarks.model_figures import Figure, figures
from baleen.benchmarks.model_page import cost_lines, print_prefills, print_table, verdict, write_page, write_svg
from baleen.benchmarks.model_parts import PARTS, QUICK_SIZES, Bench, Sizes
from baleen.benchmarks.results import Results, chosen_parts


def bench_model(
    *, quick: bool = False, only: Sequence[str] = (), json_file: Path | None = None, out: Path | None = None
) -> list[Figure]:
    """Measures the parts `only` (all by default), writes the files and prints the table; returns every figure.

    `json_file` (default `out/model.json`) is added to when it exists. Raises `BenchmarkError` for an unknown part or a
    file of something else.
    """
    parts = chosen_parts(only, PARTS)
    folder = out or Path("runs/bench")
    sizes = QUICK_SIZES if quick else Sizes()
    file = json_file or folder / ("model-quick.json" if quick else "model.json")
    bench = Bench(sizes, Results(file, "model", quick=quick, timeout=sizes.timeout))
    machine = bench.results.measure("machine", {"measure": "machine", "side": sizes.product_side}) or {}
    known = {name: machine[name] for name in ("torch", "threads", "native_bfloat16") if name in machine}
    bench.results.save(machine=bench.results.content["machine"] | known)
    print(f"  matrix products are faster in {bench.fast_dtype}, which ours computes in", file=sys.stderr)
    began = time.perf_counter()
    for name in parts:
        part_began = time.perf_counter()
        print(f"{name}:", file=sys.stderr, flush=True)
        PARTS[name](bench)
        took = time.perf_counter() - part_began
        print(f"{name} took {took:.0f} s", file=sys.stderr, flush=True)
        bench.results.save(figures=_as_rows(figures(bench)))
    made = figures(bench)
    _write(bench, made, folder)
    print_prefills(bench)
    print()
    print_table(made)
    met = sum(one.met is True for one in made)
    print(f"\n{met} of {len(made)} targets met; {time.perf_counter() - began:.0f} s")
    print(f"{file}, {folder / 'model.html'}, {folder / 'cost-against-length.svg'}")
    return made


def _write(bench: Bench, made: Sequence[Figure], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = cost_lines(bench)
    bench.results.save(
        figures=_as_rows(made),
        curves={
            line.name: [{"length": at, "seconds_per_million_tokens": value} for at, value in line.points]
            for line in lines
        },
    )
    write_svg(lines, folder / "cost-against-length.svg")
    write_page(bench, made, folder / "model.html")


def _as_rows(made: Sequence[Figure]) -> list[dict[str, object]]:
    return [asdict(one) | {"verdict": verdict(one)} for one in made]
