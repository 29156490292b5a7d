"""What `baleen bench model` measures, part by part. A part asks for measurements; `model_figures.py` reads them.

Cheap parts come first. Keys say what was measured: `prefill/sparse/float32/8192`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from baleen.benchmarks.results import Results

PER_DOUBLING = 4.0
"""The growth of time that is feared when a prompt doubles."""

PATIENCE, HOPELESS = 90.0, 1.5
"""Where the peer's one dtype is `HOPELESS` times slower than its other, prompts that are expected to take more than
`PATIENCE` seconds are read in the other alone."""

FORMS = ("sparse", "dense", "dense_whole")
"""Our prefills: sparse and dense by chunks through the cache, and dense as one whole forward."""


@dataclass(frozen=True)
class Sizes:
    """The lengths and limits of one run."""

    quick: bool = False
    product_side: int = 2048
    prefill: tuple[int, ...] = (1024, 2048, 4096, 8192)
    choice: int = 2048
    """Where the peer's fastest form is looked for."""

    shorter: tuple[int, ...] = (1024, 2048, 4096)
    """Where sparse may not lose to dense."""

    middle: int = 32768
    longest: int = 131072
    decode: tuple[int, int] = (4096, 65536)
    decode_tokens: int = 32
    train: int = 16384
    share: int = 2048
    recipe: str = "nano"
    pretrain_rows: int | None = None
    """Rows of a step; None takes the recipe's tokens per step."""

    pretrain_steps: int = 20
    pretrain_warmup: int = 4
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    peer_limit: float = 240.0
    """Seconds that one prefill of the peer's may be expected to take."""

    timeout: float = 1500.0


QUICK_SIZES = Sizes(
    quick=True,
    product_side=256,
    prefill=(256,),
    choice=256,
    shorter=(64,),
    middle=256,
    longest=512,
    decode=(64, 512),
    decode_tokens=8,
    train=256,
    share=64,
    recipe="micro",
    pretrain_rows=1,
    pretrain_steps=3,
    pretrain_warmup=1,
    dtypes=("float32",),
    timeout=60.0,
)


@dataclass(frozen=True)
class Bench:
    """A run: its sizes and its results."""

    sizes: Sizes
    results: Results

    @property
    def fast_dtype(self) -> str:
        """The dtype whose matrix products are faster on this machine."""
        machine = self.results.get("machine")
        if machine is None:
            return "float32"
        products = machine["products"]
        return max(products, key=lambda name: float(products[name]["operations_per_second"]))

    @property
    def best_dtype(self) -> str:
        """The parameters' dtype in which our sparse prefill was faster at its longest."""
        best = self.fastest(f"prefill/sparse/{name}/{self.sizes.prefill[-1]}" for name in self.sizes.dtypes)
        if best is not None:
            return best.split("/")[2]
        return self.fast_dtype if self.fast_dtype in self.sizes.dtypes else self.sizes.dtypes[0]

    def seconds(self, key: str) -> float | None:
        """The best time of a measurement."""
        entry = self.results.get(key)
        return None if entry is None else min(entry["seconds"])

    def fastest(self, keys: Iterable[str]) -> str | None:
        """The key that took the least time; None when none was measured."""
        known = {key: value for key in keys if (value := self.seconds(key)) is not None}
        return min(known, key=lambda key: known[key]) if known else None

    def best_rate(self, prefix: str) -> str | None:
        """The key with this beginning that had the most tokens per second."""
        keys = [key for key in self.results.content["measurements"] if key.startswith(prefix) and self.results.get(key)]
        return max(keys, key=lambda key: float((self.results.get(key) or {})["tokens_per_second"]), default=None)

    def task(self, measure: str, **arguments: Any) -> dict[str, Any]:
        """A task of this run's networks."""
        return {"measure": measure, "quick": self.sizes.quick, **arguments}

    def prefill(self, form: str, dtype: str, length: int) -> float | None:
        """Measures a prefill of ours; returns its best time."""
        key = f"prefill/{form}/{dtype}/{length}"
        compute = "float32" if dtype == "float32" else self.fast_dtype
        self.results.measure(key, self.task("prefill", length=length, form=form, dtype=dtype, compute=compute))
        return self.seconds(key)


def measure_matmul(bench: Bench) -> None:
    """The prefill whose share of the product rate is asked for; the rate itself is measured in every run."""
    for dtype in bench.sizes.dtypes:
        for form in ("sparse", "dense"):
            bench.prefill(form, dtype, bench.sizes.share)


def measure_decode(bench: Bench) -> None:
    """Cached steps at two lengths, in one process."""
    sizes, dtype = bench.sizes, bench.best_dtype
    compute = "float32" if dtype == "float32" else bench.fast_dtype
    lengths = list(sizes.decode)
    task = bench.task("decode", lengths=lengths, tokens=sizes.decode_tokens, dtype=dtype, compute=compute)
    bench.results.measure("decode", task)


def measure_pretrain(bench: Bench) -> None:
    """Ours with the recipe's second-token loss, the faster once more without it, and the peer, which has none."""
    sizes = bench.sizes
    counts = {
        "recipe": sizes.recipe,
        "rows": sizes.pretrain_rows,
        "steps": sizes.pretrain_steps,
        "warmup": sizes.pretrain_warmup,
    }
    for compute in {"float32": 0, bench.fast_dtype: 0}:  # each once
        task = {"measure": "pretrain", "compute": compute, "second_token": True, **counts}
        bench.results.measure(f"pretrain/ours/{compute}", task)
    best = bench.best_rate("pretrain/ours/")
    if best is not None:
        task = {"measure": "pretrain", "compute": best.rsplit("/", 1)[1], "second_token": False, **counts}
        bench.results.measure("pretrain/ours-without-second-token", task)
    bench.results.measure("pretrain/peer", {"measure": "peer_pretrain", **counts})


def measure_prefill(bench: Bench) -> None:
    """Ours sparse and dense, then the peer, from the shortest prompt to the longest."""
    sizes = bench.sizes
    for length in sizes.prefill:
        for dtype in sizes.dtypes:
            for form in ("sparse", "dense"):
                bench.prefill(form, dtype, length)
        bench.prefill("dense_whole", bench.fast_dtype if bench.fast_dtype in sizes.dtypes else sizes.dtypes[0], length)
    task = bench.task("peer_choice", length=sizes.choice, dtypes=list(sizes.dtypes))
    choice = bench.results.measure("peer/choice", task)
    if choice is None:
        return
    known = {dtype: float(choice["best"][dtype]["seconds"] or math.inf) for dtype in sizes.dtypes}
    took = known
    for length in sizes.prefill:
        if length <= sizes.choice:  # the trial tells: no prompt costs more per token than a longer one
            expected = {dtype: seconds * length / sizes.choice for dtype, seconds in known.items()}
        else:
            expected = {dtype: PER_DOUBLING * seconds for dtype, seconds in took.items()}
        took = {dtype: _measure_peer(bench, choice["best"][dtype], expected, dtype, length) for dtype in sizes.dtypes}


def _measure_peer(bench: Bench, form: dict[str, Any], expected: dict[str, float], dtype: str, length: int) -> float:
    """The seconds that a prompt took, or that are expected where it was left out; infinity where it failed."""
    key = f"peer/{dtype}/{length}"
    if math.isinf(expected[dtype]):
        bench.results.skip(key, "it failed on a shorter prompt")
    elif expected[dtype] > bench.sizes.peer_limit:
        bench.results.skip(key, f"about {expected[dtype]:.0f} s are expected, more than {bench.sizes.peer_limit:.0f} s")
    elif expected[dtype] > max(PATIENCE, HOPELESS * min(expected.values())):
        times = expected[dtype] / min(expected.values())
        bench.results.skip(key, f"{times:.1f} times slower than the other dtype on shorter prompts")
    else:
        names = ("attention", "experts", "use_cache")
        task = bench.task("peer_prefill", length=length, dtype=dtype, **{name: form[name] for name in names})
        bench.results.measure(key, task)
        return bench.seconds(key) or math.inf
    return expected[dtype]


def measure_train(bench: Bench) -> None:
    """A step sparse and dense."""
    for form in ("sparse", "dense"):
        task = bench.task("train", length=bench.sizes.train, sparse=form == "sparse", compute=bench.fast_dtype)
        bench.results.measure(f"train/{form}", task)


def measure_memory(bench: Bench) -> None:
    """The longest sparse prefill."""
    bench.prefill("sparse", bench.best_dtype, bench.sizes.longest)


def measure_long(bench: Bench) -> None:
    """Sparse against dense at every length; dense at the longest on one layer only, and in the form that was the faster
    at the longest of the shorter prompts, as each takes minutes."""
    sizes, dtype = bench.sizes, bench.best_dtype
    for length in sizes.shorter:
        for form in FORMS:
            bench.prefill(form, dtype, length)
    fastest = bench.fastest(f"prefill/{form}/{dtype}/{sizes.shorter[-1]}" for form in FORMS if form != "sparse")
    dense = "dense" if fastest is None else fastest.split("/")[1]
    for form in ("sparse", dense):
        bench.prefill(form, dtype, sizes.middle)
    measure_memory(bench)
    compute = "float32" if dtype == "float32" else bench.fast_dtype
    for length in (sizes.prefill[-1], sizes.middle, sizes.longest):
        task = bench.task("prefill", form="sparse", shared=True, length=length, dtype=dtype, compute=compute)
        bench.results.measure(f"long/shared/{length}", task)
    task = bench.task("prefill", form=dense, layers=1, length=sizes.longest, dtype=dtype, compute=compute)
    bench.results.measure("long/dense-one-layer", task)


PARTS: dict[str, Callable[[Bench], None]] = {
    "matmul": measure_matmul,
    "decode": measure_decode,
    "prefill": measure_prefill,
    "pretrain": measure_pretrain,
    "train": measure_train,
    "memory": measure_memory,
    "long": measure_long,
}
"""The parts by name, in the order in which they run."""
