"""From the measurements of `baleen bench model` to its figures: ours, the other side, the ratio, the target.

Nothing is measured here. A figure whose measurements are missing says which one and why, and counts as neither met nor
missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
    sizes = bench.sizes
    last, middle, longest = (thousands(length) for length in (sizes.prefill[-1], sizes.middle, sizes.longest))
    near, far = (thousands(length) for length in sizes.decode)
    train, share = thousands(sizes.train), thousands(sizes.share)
    makers: list[tuple[Figure, Callable[[Bench, Figure], Figure]]] = [
        (Figure("prefill", f"prefill at {last} against transformers", "at least 20 times (aim 30)"), _prefill_speed),
        (Figure("prefill", f"its memory at {last}", "at most a tenth"), _prefill_memory),
    ]
    for length in sizes.shorter:
        blank = Figure("long", f"sparse against dense at {thousands(length)}", "at least 0.91 times")
        makers.append((blank, _against_dense(length, 1 / 1.1)))
    makers += [
        (Figure("long", f"sparse against dense at {middle}", "at least 2.5 times"), _against_dense(sizes.middle, 2.5)),
        (Figure("long", f"sparse against dense at {longest}", "at least 3.5 times"), _longest("sparse", 3.5)),
        (Figure("long", f"the same, {SHARING} layers to a selection", "at least 6 times"), _longest("shared", 6.0)),
        (Figure("memory", f"peak of prefill at {longest} above the weights", "at most 3 GB"), _memory),
        (Figure("decode", f"a cached step at {far} against {near}", "at most 2 times"), _decode),
        (Figure("train", f"training step at {train}: peak of the process", "below 8 GB"), _train_memory),
        (Figure("train", f"training step at {train} against the dense step", "at least 2 times"), _train_speed),
        (Figure("matmul", f"share of the product rate in a {share} prefill", "at least 50%"), _matmul),
        (Figure("pretrain", f"pre-training of {sizes.recipe} against transformers", "at least 5 times"), _pretrain),
    ]
    made = []
    for blank, maker in makers:
        try:
            made.append(maker(bench, blank))
        except _Missing as missing:
            made.append(replace(blank, note=str(missing)))
    return made


def thousands(length: int) -> str:
    """A length as people say it: 64K, 512."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def fastest_sparse(bench: Bench, length: int) -> str | None:
    """The key of our sparse prefill in its faster dtype."""
    return bench.fastest(f"prefill/sparse/{dtype}/{length}" for dtype in bench.sizes.dtypes)


def fastest_dense(bench: Bench, length: int) -> str | None:
    """The key of our dense prefill: the fastest of by chunks and whole, in either dtype."""
    forms = ("dense", "dense_whole")
    return bench.fastest(f"prefill/{form}/{dtype}/{length}" for form in forms for dtype in bench.sizes.dtypes)


def fastest_peer(bench: Bench, length: int) -> str | None:
    """The key of the peer's prefill in its faster dtype."""
    return bench.fastest(f"peer/{dtype}/{length}" for dtype in bench.sizes.dtypes)


def dense_longest(bench: Bench) -> float | None:
    """Our dense prefill at the longest: one layer's time, once for every layer of the network."""
    one = bench.seconds("long/dense-one-layer")
    fields = QUICK if bench.sizes.quick else BENCHMARK
    return None if one is None else one * int(fields["num_hidden_layers"])


def _entry(bench: Bench, key: str) -> dict[str, Any]:
    entry = bench.results.get(key)
    if entry is None:
        raise _Missing(f"{key}: {bench.results.problem(key)}")
    return entry


def _needed(bench: Bench, key: str) -> float:
    return float(min(_entry(bench, key)["seconds"]))


def _one_of(bench: Bench, key: str | None, kind: str, length: int) -> str:
    """The key, or what became of the measurements that could have been it."""
    if key is not None:
        return key
    keys = [f"{kind}/{dtype}/{length}" for dtype in bench.sizes.dtypes]
    keys += ["peer/choice"] if kind == "peer" and bench.results.get("peer/choice") is None else []
    raise _Missing("; ".join(f"{key}: {bench.results.problem(key)}" for key in keys))


def _sparse(bench: Bench, length: int) -> str:
    return _one_of(bench, fastest_sparse(bench, length), "prefill/sparse", length)


def _dense(bench: Bench, length: int) -> str:
    return _one_of(bench, fastest_dense(bench, length), "prefill/dense", length)


def _done(blank: Figure, ours: str, peer: str, ratio: float | None, met: bool, note: str = "") -> Figure:
    return replace(blank, ours=ours, peer=peer, ratio=ratio, met=met, note=note)


def _prefill_pair(bench: Bench) -> tuple[str, str]:
    length = bench.sizes.prefill[-1]
    return _sparse(bench, length), _one_of(bench, fastest_peer(bench, length), "peer", length)


def _prefill_speed(bench: Bench, blank: Figure) -> Figure:
    ours, peer = _prefill_pair(bench)
    length = bench.sizes.prefill[-1]
    mine, theirs = _needed(bench, ours), _needed(bench, peer)
    ratio = theirs / mine
    choice = bench.results.get("peer/choice") or {}
    form = (choice.get("best") or {}).get(peer.split("/")[1], {})
    note = f"each in its faster dtype: ours in {ours.split('/')[2]}, theirs in {peer.split('/')[1]}"
    note += f" with {form['attention']} attention and {form['experts']} experts" if form else ""
    if choice.get("logits_difference") is not None:
        note += f"; logits within {choice['logits_difference']:.0e} of their spread"
    return _done(blank, f"{length / mine:,.0f} tokens/s", f"{length / theirs:,.0f} tokens/s", ratio, ratio >= 20, note)


def _prefill_memory(bench: Bench, blank: Figure) -> Figure:
    mine, theirs = (float(_entry(bench, key)["memory_bytes"]) for key in _prefill_pair(bench))
    ratio = theirs / max(mine, 1.0)
    return _done(blank, _gigabytes(mine), _gigabytes(theirs), ratio, ratio >= 10, "peak above the weights")


def _against_dense(length: int, target: float) -> Callable[[Bench, Figure], Figure]:
    def make(bench: Bench, blank: Figure) -> Figure:
        ours, other = _sparse(bench, length), _dense(bench, length)
        sparse, dense = _needed(bench, ours), _needed(bench, other)
        whole = "as one forward" if "dense_whole" in other else "by chunks"
        note = f"sparse in {ours.split('/')[2]}, dense in {other.split('/')[2]} {whole}"
        return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= target, note)

    return make


def _longest(form: str, target: float) -> Callable[[Bench, Figure], Figure]:
    def make(bench: Bench, blank: Figure) -> Figure:
        length = bench.sizes.longest
        sparse = _needed(bench, f"long/shared/{length}" if form == "shared" else _sparse(bench, length))
        _needed(bench, "long/dense-one-layer")
        dense = dense_longest(bench) or 0.0
        note = "dense: one layer was measured, times the layers"
        return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= target, note)

    return make


def _memory(bench: Bench, blank: Figure) -> Figure:
    peak = float(_entry(bench, _sparse(bench, bench.sizes.longest))["memory_bytes"])
    return _done(blank, _gigabytes(peak), "–", None, peak <= MEMORY_TARGET)


def _decode(bench: Bench, blank: Figure) -> Figure:
    entry = _entry(bench, "decode")
    seconds = entry["seconds"]
    short, long = (statistics.median(seconds[str(length)]) for length in bench.sizes.decode)
    note = f"medians in {entry['task']['dtype']}; the cache was filled with random rows, not by a prefill"
    return _done(blank, f"{1e3 * long:.2f} ms", f"{1e3 * short:.2f} ms near", long / short, long / short <= 2, note)


def _train_memory(bench: Bench, blank: Figure) -> Figure:
    peak = float(_entry(bench, "train/sparse")["process_bytes"])
    dense = (bench.results.get("train/dense") or {}).get("process_bytes")
    peer = "–" if dense is None else f"{_gigabytes(dense)} dense"
    return _done(blank, _gigabytes(peak), peer, None, peak < TRAINING_MEMORY_TARGET, "weights and gradients included")


def _train_speed(bench: Bench, blank: Figure) -> Figure:
    sparse, dense = _needed(bench, "train/sparse"), _needed(bench, "train/dense")
    products = _entry(bench, "train/sparse")["task"]["compute"]
    note = f"forward and backward, products in {products}; the sparse step with the indexer's KL on every query"
    return _done(blank, _time(sparse), f"{_time(dense)} dense", dense / sparse, dense / sparse >= 2, note)


def _matmul(bench: Bench, blank: Figure) -> Figure:
    length, fields = bench.sizes.share, QUICK if bench.sizes.quick else BENCHMARK
    products = _entry(bench, "machine")["products"]
    rates = {name: float(one["operations_per_second"]) for name, one in products.items()}
    best = rates[bench.fast_dtype]
    seconds = _needed(bench, _sparse(bench, length))
    reached = prefill_operations(fields, length, sparse=True) / seconds
    strict = prefill_operations(fields, length, sparse=True, strict=True) / seconds / best
    listed = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in rates.items())
    note = f"products: {listed} GFLOP/s, the faster counts; {100 * strict:.0f}% with selected pairs at expanded widths"
    dense = fastest_dense(bench, length)
    if dense is not None:
        share = prefill_operations(fields, length, sparse=False) / _needed(bench, dense) / best
        note += f"; dense {100 * share:.0f}%"
    share = reached / best
    return _done(blank, f"{reached / 1e9:,.0f} GFLOP/s", f"{best / 1e9:,.0f} GFLOP/s", share, share >= 0.5, note)


def _pretrain(bench: Bench, blank: Figure) -> Figure:
    ours = bench.best_rate("pretrain/ours/") or "pretrain/ours/float32"
    mine, theirs = (float(_entry(bench, key)["tokens_per_second"]) for key in (ours, "pretrain/peer"))
    best = _entry(bench, "pretrain/peer")["best"]
    theirs_form = f"{best['attention']} attention, {best['experts']} experts{', autocast' if best['autocast'] else ''}"
    note = f"ours in {ours.rsplit('/', 1)[1]} with the second-token loss, which theirs ({theirs_form}) has not"
    plain = bench.results.get("pretrain/ours-without-second-token")
    if plain is not None:
        note += f"; ours without it {plain['tokens_per_second'] / theirs:.2f} times"
    ratio = mine / theirs
    return _done(blank, f"{mine:,.0f} tokens/s", f"{theirs:,.0f} tokens/s", ratio, ratio >= 5, note)


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
