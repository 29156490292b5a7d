"""From the measurements of `baleen bench serve` to its figures: ours, the other side, the ratio, the target.

Nothing is measured here. The targets of speed count for answers in one piece over HTTP, by a server without drafts:
that was fixed before anything was measured, and the other ways stand in the notes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from baleen.benchmarks.model_figures import Figure, thousands
from baleen.benchmarks.serve_parts import Bench, form_name

BATCH_TARGET, SINGLE_TARGET = 10.0, 4.0
PREFIX_TARGET = 0.1
BESIDE_TARGET = 3.0
TRACES_TARGET = 1.15
GROWTH_TARGET = 1.05

Answers = dict[str, Any]


def figures(bench: Bench) -> list[Figure]:
    """Every figure, in the order of the table."""
    sizes = bench.sizes
    batch, answer = f"{sizes.at_once} requests at once", f"{sizes.answer} tokens each"
    at_least = "at least {:g} times".format
    made = [
        _speed(bench, Figure("throughput", f"{batch}, {answer}", at_least(BATCH_TARGET)), BATCH_TARGET),
        _speed(bench, Figure("single", f"one request, {answer}", at_least(SINGLE_TARGET)), SINGLE_TARGET),
    ]
    prefix = f"first token after {thousands(sizes.prefix)} known tokens and {sizes.more} new ones"
    long = f"between tokens while {thousands(sizes.long)} are read beside it"
    soak = f"{sizes.soak_clients} clients for {sizes.soak_seconds:.0f} s"
    for blank, maker in (
        (Figure("prefix", prefix, f"at most {PREFIX_TARGET:g} of a new prompt"), _prefix),
        (Figure("beside", long, f"mean at most {BESIDE_TARGET:g} times a quiet one"), _beside),
        (Figure("traces", f"{sizes.episodes} episodes with traces", f"at most {TRACES_TARGET:g} times"), _traces),
        (Figure("drafts", "drafts on conversations, one at a time", "–"), _drafts("1")),
        (Figure("drafts", f"drafts on conversations, {sizes.at_once} at once", "–"), _drafts(str(sizes.at_once))),
        (Figure("soak", f"{soak}: wrong answers", "0"), _wrong),
        (Figure("soak", f"{soak}: pages that stayed behind", "0"), _leaked),
        (Figure("soak", f"{soak}: growth of memory", f"at most {GROWTH_TARGET:g} times"), _growth),
    ):
        entry = bench.results.get(blank.part)
        made.append(
            replace(blank, note=f"{blank.part}: {bench.results.problem(blank.part)}")
            if entry is None
            else maker(entry, blank)
        )
    return made


def _speed(bench: Bench, blank: Figure, target: float) -> Figure:
    keys = [f"{blank.part}/http/{form_name(drafts=False)}", f"{blank.part}/peer"]
    ours, peer = (bench.results.get(key) for key in keys)
    if ours is None or peer is None:
        missing = keys[0] if ours is None else keys[1]
        return replace(blank, note=f"{missing}: {bench.results.problem(missing)}")
    ratio = ours["tokens_per_second"] / peer["tokens_per_second"]
    best = peer["best"]
    form = f"{best['attention']} attention, {best['experts']} experts, threads: {best['threads']}"
    note = "; ".join(["over HTTP, in one piece", *_other_ways(bench, blank.part), f"transformers with {form}"])
    return replace(blank, ours=_rate(ours), peer=_rate(peer), ratio=ratio, met=ratio >= target, note=note)


def _other_ways(bench: Bench, part: str) -> Iterator[str]:
    """The same work streamed, by the engine alone, and with drafts."""
    for drafts in (False, True):
        name, key = " with drafts" if drafts else "", f"{part}/http/{form_name(drafts)}"
        http, alone = bench.results.get(key), bench.results.get(f"{part}/engine/{form_name(drafts)}")
        if http is None:
            yield f"{key}: {bench.results.problem(key)}"
        else:
            if drafts:
                yield f"in one piece with drafts {http['tokens_per_second']:,.0f}"
            yield f"streamed{name} {http['streamed']:,.0f}"
        if alone is not None:
            yield f"the engine alone{name} {alone['tokens_per_second']:,.0f}"


def _prefix(entry: Answers, blank: Figure) -> Figure:
    first, second = (statistics.median(entry[name]) for name in ("first", "second"))
    note = f"medians over {len(entry['first'])} beginnings, streamed by a quiet server"
    return _done(blank, _time(second), f"{_time(first)} new", entry["ratio"], entry["ratio"] <= PREFIX_TARGET, note)


def _beside(entry: Answers, blank: Figure) -> Figure:
    before, beside, after = entry["quiet"], entry["beside"], entry["after"]
    # The stream itself grows meanwhile, by tens of thousands of tokens where the model is small, and a step costs more
    # with each: its quiet value over the same lengths lies half-way between the quiet ones at both ends.
    quiet = (before["mean"] + after["mean"]) / 2
    ratio = beside["mean"] / quiet
    note = (
        f"quiet: {_time(before['mean'])} before it, {_time(after['mean'])} after it, the stream {beside['tokens']:,} "
        f"tokens longer; {beside['mean'] / before['mean']:.1f} times the value before it; p99 {_time(beside['p99'])}; "
        f"tokens of one event have no time between them; the long prompt took {entry['prompt_seconds']:.1f} s"
    )
    return _done(blank, _time(beside["mean"]), f"{_time(quiet)} quiet", ratio, ratio <= BESIDE_TARGET, note)


def _traces(entry: Answers, blank: Figure) -> Figure:
    ratio = entry["traced"] / entry["plain"]
    same = "the same tokens both times" if entry["same_tokens"] else "THE TOKENS DIFFER"
    note = f"medians of {len(entry['times']['plain'])}, by turns; {entry['sampled_tokens']:,} sampled tokens, {same}"
    met = ratio <= TRACES_TARGET and entry["same_tokens"]
    return _done(blank, _time(entry["traced"]), f"{_time(entry['plain'])} without", ratio, met, note)


def _drafts(batch: str) -> Callable[[Answers, Figure], Figure]:
    def make(entry: Answers, blank: Figure) -> Figure:
        found = entry["batches"][batch]
        same = "the same tokens" if found["same_tokens"] else "THE TOKENS DIFFER"
        note = f"{100 * found['acceptance']:.0f}% of the drafts stood; the engine alone; {same}"
        on, off = f"{found['on']:,.0f} tokens/s", f"{found['off']:,.0f} without"
        return replace(blank, ours=on, peer=off, ratio=found["on"] / found["off"], note=note)

    return make


def _wrong(entry: Answers, blank: Figure) -> Figure:
    note = (
        f"{entry['answers']:,} whole answers and {entry['vanished']:,} that were left, each compared with "
        f"the same request alone; {entry['refused']} were refused; {entry['tokens'] / entry['lasted']:,.0f} tokens/s"
    )
    if entry["what_was_wrong"]:
        note += f"; {entry['what_was_wrong'][0]}"
    met = entry["wrong"] == 0 and entry["answers"] > 0
    return replace(blank, ours=str(entry["wrong"]), met=met, note=note)


def _leaked(entry: Answers, blank: Figure) -> Figure:
    note = f"{entry['free_after']:.2f} s after the last client had gone"
    return replace(blank, ours=str(entry["pages_left"]), met=entry["pages_left"] == 0, note=note)


def _growth(entry: Answers, blank: Figure) -> Figure:
    growth, peak = entry["growth"], {name: max(one[name] for one in entry["memory"]) for name in entry["growth"]}
    worst = max(growth, key=lambda name: float(growth[name]))
    parts = [f"{name} {growth[name]:.3f} times, at most {peak[name] / 1e6:,.0f} MB" for name in growth]
    note = f"the most of the last quarter against the second one: {'; '.join(parts)}"
    return replace(
        blank, ours=f"{peak[worst] / 1e6:,.0f} MB", ratio=growth[worst], met=growth[worst] <= GROWTH_TARGET, note=note
    )


def _done(blank: Figure, ours: str, peer: str, ratio: float, met: bool, note: str) -> Figure:
    return replace(blank, ours=ours, peer=peer, ratio=ratio, met=met, note=note)


def _rate(entry: Answers) -> str:
    return f"{entry['tokens_per_second']:,.0f} tokens/s"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
