"""From the measurements of `baleen bench model` to its figures: ours, the other side, the ratio, the target.

Nothing is measured here. A figure whose measurements are missing says which one and why, and counts as neither met nor
missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baleen.benchmarks.model_parts import Bench
from baleen.benchmarks.networks import BENCHMARK, QUICK, SHARING
from baleen.benchmarks.operations import prefill_operations

MEMORY_TARGET, TRAINING_MEMORY_TARGET = 3e9, 8e9


@dataclass(frozen=True)
class Figure:
    """One figure. `ours` and `peer` carry their units; `ratio` is what the target is about, where it is about one."""

    part: str
    name: str
    target: str
    ours: str = "–"
    peer: str = "–"
    ratio: float | None = None
    met: bool | None = None
    note: str = ""


class _Missing(Exception):
    """A measurement that a figure needs is not there."""


def figures(bench: Bench) -> list[Figure]:
    """Every figure, in the order of the table."""
    makers: list[tuple[str, str, str, Callable[[], Figure]]] = []
    sizes = bench.sizes

    def add(part: str, name: str, target: str, maker: Callable[[Bench, Figure], Figure]) -> None:
        blank = Figure(part, name, target)
        makers.append((part, name, target, lambda: maker(bench, blank)))

    last = thousands(sizes.prefill[-1])
    add("prefill", f"prefill at {last} against transformers", "at least 20 times (aim 30)", _prefill_speed)
    add("prefill", f"its memory at {last}", "at most a tenth", _prefill_memory)
    for length in sizes.shorter:
        add("long", f"sparse against dense at {thousands(length)}", "at least 0.91 times", _against_dense(length, 1 / 1.1))
    middle = thousands(sizes.middle)
    add("long", f"sparse against dense at {middle}", "at least 2.5 times", _against_dense(sizes.middle, 2.5))
    longest = thousands(sizes.longest)
    add("long", f"sparse against dense at {longest}", "at least 3.5 times", _longest("sparse", 3.5))
    add("long", f"the same, {SHARING} layers sharing a selection", "at least 6 times", _longest("shared", 6.0))
    add("memory", f"peak of prefill at {longest} above the weights", "at most 3 GB", _memory)
    add("decode", f"a step at {thousands(sizes.decode[1])} against {thousands(sizes.decode[0])}", "at most 2 times", _decode)
    train = thousands(sizes.train)
    add("train", f"training step at {train}: peak of the process", "below 8 GB", _train_memory)
    add("train", f"training step at {train} against the dense step", "at least 2 times", _train_speed)
    share = thousands(sizes.share)
    add("matmul", f"share of the product rate in a {share} prefill", "at least 50%", _matmul)
    add("pretrain", f"pre-training of {sizes.recipe} against transformers", "at least 5 times", _pretrain)
    made = []
    for part, name, target, maker in makers:
        try:
            made.append(maker())
        except _Missing as missing:
            made.append(Figure(part, name, target, note=str(missing)))
    return made


def thousands(length: int) -> str:
    """A length as people say it: 64K, 512."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def dense_seconds(bench: Bench, dtype: str, length: int) -> float | None:
    """Our dense prefill: the faster of by chunks and whole."""
    forms = (bench.seconds(f"prefill/{form}/{dtype}/{length}") for form in ("dense", "dense_whole"))
    return min((value for value in forms if value is not None), default=None)


def dense_longest(bench: Bench) -> float | None:
    """Our dense prefill at the longest: one layer's time, once for every layer of the network."""
    one = bench.seconds("long/dense-one-layer")
    fields = QUICK if bench.sizes.quick else BENCHMARK
    return None if one is None else one * int(fields["num_hidden_layers"])


def peer_best(bench: Bench, length: int) -> str | None:
    """The key of the peer's faster dtype at a length."""
    known = {}
    for dtype in bench.sizes.dtypes:
        seconds = bench.seconds(f"peer/{dtype}/{length}")
        if seconds is not None:
            known[f"peer/{dtype}/{length}"] = seconds
    return min(known, key=lambda key: known[key]) if known else None


def _needed(bench: Bench, key: str) -> float:
    value = bench.seconds(key)
    if value is None:
        raise _Missing(f"{key}: {bench.results.problem(key)}")
    return value


def _done(blank: Figure, ours: str, peer: str, ratio: float, met: bool, note: str = "") -> Figure:
    return Figure(blank.part, blank.name, blank.target, ours, peer, ratio, met, note)


def _prefill_pair(bench: Bench) -> tuple[str, str]:
    length = bench.sizes.prefill[-1]
    ours, peer = f"prefill/sparse/{bench.best_dtype}/{length}", peer_best(bench, length)
    _needed(bench, ours)
    if peer is None:
        keys = [f"peer/{dtype}/{length}" for dtype in bench.sizes.dtypes]
        reasons = "; ".join(f"{key}: {bench.results.problem(key)}" for key in keys)
        choice = "" if bench.results.get("peer/choice") else f"; peer/choice: {bench.results.problem('peer/choice')}"
        raise _Missing(reasons + choice)
    return ours, peer


def _prefill_speed(bench: Bench, blank: Figure) -> Figure:
    ours, peer = _prefill_pair(bench)
    length = bench.sizes.prefill[-1]
    mine, theirs = _needed(bench, ours), _needed(bench, peer)
    ratio = theirs / mine
    note = f"ours in {ours.split('/')[2]}, theirs in {peer.split('/')[1]}: each its faster dtype"
    return _done(blank, f"{length / mine:,.0f} tokens/s", f"{length / theirs:,.0f} tokens/s", ratio, ratio >= 20, note)


def _prefill_memory(bench: Bench, blank: Figure) -> Figure:
    mine, theirs = (float((bench.results.get(key) or {})["memory_bytes"]) for key in _prefill_pair(bench))
    ratio = theirs / max(mine, 1.0)
    return _done(blank, _gigabytes(mine), _gigabytes(theirs), ratio, ratio >= 10, "peak above the weights")


def _against_dense(length: int, target: float) -> Callable[[Bench, Figure], Figure]:
    def make(bench: Bench, blank: Figure) -> Figure:
        dtype = bench.best_dtype
        sparse, dense = _needed(bench, f"prefill/sparse/{dtype}/{length}"), dense_seconds(bench, dtype, length)
        if dense is None:
            raise _Missing(f"prefill/dense/{dtype}/{length}: {bench.results.problem(f'prefill/dense/{dtype}/{length}')}")
        return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= target)

    return make


def _longest(form: str, target: float) -> Callable[[Bench, Figure], Figure]:
    def make(bench: Bench, blank: Figure) -> Figure:
        key = "long/shared" if form == "shared" else f"prefill/sparse/{bench.best_dtype}/{bench.sizes.longest}"
        sparse = _needed(bench, key)
        _needed(bench, "long/dense-one-layer")
        dense = dense_longest(bench) or 0.0
        note = "dense: one layer was measured, times the layers"
        return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= target, note)

    return make


def _memory(bench: Bench, blank: Figure) -> Figure:
    key = f"prefill/sparse/{bench.best_dtype}/{bench.sizes.longest}"
    _needed(bench, key)
    peak = float((bench.results.get(key) or {})["memory_bytes"])
    return _done(blank, _gigabytes(peak), _gigabytes(MEMORY_TARGET), peak / MEMORY_TARGET, peak <= MEMORY_TARGET)


def _decode(bench: Bench, blank: Figure) -> Figure:
    entry = bench.results.get("decode")
    if entry is None:
        raise _Missing(f"decode: {bench.results.problem('decode')}")
    near, far = (sorted(entry["seconds"][str(length)]) for length in bench.sizes.decode)
    short, long = near[len(near) // 2], far[len(far) // 2]
    note = "medians; the cache was filled with random rows, not by a prefill"
    return _done(blank, f"{1e3 * long:.2f} ms", f"{1e3 * short:.2f} ms near", long / short, long / short <= 2, note)


def _train_memory(bench: Bench, blank: Figure) -> Figure:
    _needed(bench, "train/sparse")
    peak = float((bench.results.get("train/sparse") or {})["process_bytes"])
    dense = (bench.results.get("train/dense") or {}).get("process_bytes")
    peer = "–" if dense is None else f"{_gigabytes(dense)} dense"
    ratio = peak / TRAINING_MEMORY_TARGET
    return _done(blank, _gigabytes(peak), peer, ratio, peak < TRAINING_MEMORY_TARGET, "ratio: to the target")


def _train_speed(bench: Bench, blank: Figure) -> Figure:
    sparse, dense = _needed(bench, "train/sparse"), _needed(bench, "train/dense")
    note = "forward and backward; the sparse step with the indexer's KL on every query"
    return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= 2, note)


def _matmul(bench: Bench, blank: Figure) -> Figure:
    length, fields = bench.sizes.share, QUICK if bench.sizes.quick else BENCHMARK
    machine = bench.results.get("machine")
    if machine is None:
        raise _Missing(f"machine: {bench.results.problem('machine')}")
    seconds = _needed(bench, f"prefill/sparse/{bench.best_dtype}/{length}")
    rates = {name: entry["operations_per_second"] for name, entry in machine["products"].items()}
    best = rates[bench.fast_dtype]
    reached = prefill_operations(fields, length, sparse=True) / seconds
    strict = prefill_operations(fields, length, sparse=True, strict=True) / seconds / best
    note = f"products: {', '.join(f'{name} {rate / 1e9:,.0f}' for name, rate in rates.items())} GFLOP/s; the faster counts"
    note += f"; {100 * strict:.0f}% with selected pairs at the expanded widths"
    dense = dense_seconds(bench, bench.best_dtype, length)
    if dense is not None:
        note += f"; dense {100 * prefill_operations(fields, length, sparse=False) / dense / best:.0f}%"
    share = reached / best
    return _done(blank, f"{reached / 1e9:,.0f} GFLOP/s", f"{best / 1e9:,.0f} GFLOP/s", share, share >= 0.5, note)


def _pretrain(bench: Bench, blank: Figure) -> Figure:
    rates = []
    for key in ("pretrain/ours", "pretrain/peer"):
        entry = bench.results.get(key)
        if entry is None:
            raise _Missing(f"{key}: {bench.results.problem(key)}")
        rates.append(float(entry["tokens_per_second"]))
    mine, theirs = rates
    note = "ours with the second-token loss, which theirs has not"
    plain = bench.results.get("pretrain/ours-without-second-token")
    if plain is not None:
        note += f"; ours without it {plain['tokens_per_second'] / theirs:.2f} times"
    ratio = mine / theirs
    return _done(blank, f"{mine:,.0f} tokens/s", f"{theirs:,.0f} tokens/s", ratio, ratio >= 5, note)


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
