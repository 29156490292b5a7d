"""What `baleen bench model` shows: the table on the terminal, the cost against length as an SVG, and a small page.

The page has the report's style and, like it, needs nothing else and may fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from baleen.benchmarks.model_figures import (
    Figure,
    dense_longest,
    fastest_dense,
    fastest_peer,
    fastest_sparse,
    thousands,
)
from baleen.benchmarks.model_parts import Bench
from baleen.report.charts import FULL, Line
from baleen.report.markup import Html, element, percent, table
from baleen.report.svg import Scale, axes, drawing, figure, frame
from baleen.training.records import write_text_atomic

TITLE = "Cost against length"
NOTE = "Seconds of a prefill per million tokens, each side in its faster dtype; both axes are logarithmic."
MILLION = 1_000_000
PREFILLS = {
    "sparse": "prefill/sparse/{dtype}/{length}",
    "dense, by chunks": "prefill/dense/{dtype}/{length}",
    "dense, as one forward": "prefill/dense_whole/{dtype}/{length}",
    "sparse, shared selections": "long/shared/{length}",
    "transformers": "peer/{dtype}/{length}",
}
"""What reads prompts, and the keys of its measurements."""


@dataclass(frozen=True)
class LengthScale(Scale):
    """Lengths by logarithm, with ticks at the powers of two."""

    def ticks(self, count: int = 5) -> list[float]:
        """Powers of two within the range, every second one where there are many."""
        powers = [2.0**power for power in range(3, 25) if self.low <= 2**power <= self.high]
        return powers[:: 2 if len(powers) > 2 * count else 1]


def verdict(one: Figure) -> str:
    """Met, missed, shown where there is no target, or not measured."""
    if one.met is not None:
        return "met" if one.met else "missed"
    return "not measured" if one.target != "–" or one.ratio is None else "shown"


def ratio_text(one: Figure) -> str:
    """The ratio as it is read; a share as a percentage."""
    if one.part == "matmul" and one.ratio is not None:
        return percent(one.ratio, 0)
    return "–" if one.ratio is None else f"{one.ratio:.2f}×" if one.ratio < 10 else f"{one.ratio:.1f}×"


def print_table(figures: Sequence[Figure]) -> None:
    """The figures on stdout, aligned, each note below its row."""
    header = ("figure", "ours", "other side", "ratio", "target", "")
    rows = [(one.name, one.ours, one.peer, ratio_text(one), one.target, verdict(one)) for one in figures]
    _print_aligned((header, *rows), ["", *(one.note for one in figures)])


def print_prefills(bench: Bench) -> None:
    """Every prefill on stdout."""
    rows = (prefill_header(bench), *prefill_rows(bench))
    _print_aligned(rows, [""] * len(rows))


def _print_aligned(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, note in zip(rows, notes, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if note:
            print(f"    {note}")


def prefill_header(bench: Bench) -> tuple[str, ...]:
    """The columns of `prefill_rows`."""
    return ("prefill", "of", *bench.sizes.dtypes)


def prefill_rows(bench: Bench) -> list[tuple[str, ...]]:
    """Tokens per second and peak memory above the weights of each prompt, form and dtype; what was not read is left
    out, and a dtype that was not is a dash."""
    rows = []
    for length in _lengths(bench):
        for name, pattern in PREFILLS.items():
            cells = []
            for dtype in bench.sizes.dtypes:
                entry = bench.results.get(pattern.format(dtype=dtype, length=length))
                cells.append(_rate(entry) if entry and entry["task"]["dtype"] == dtype else "–")
            if any(cell != "–" for cell in cells):
                rows.append((thousands(length), name, *cells))
    return rows


def _rate(entry: dict[str, Any]) -> str:
    rate, memory = entry["length"] / min(entry["seconds"]), entry["memory_bytes"] / 1e9
    return f"{rate:,.0f} tokens/s, {memory:.2f} GB"


def _lengths(bench: Bench) -> list[int]:
    sizes = bench.sizes
    return sorted({*sizes.prefill, *sizes.shorter, sizes.share, sizes.middle, sizes.longest})


def cost_lines(bench: Bench) -> list[Line]:
    """(length, seconds per million tokens) of dense, sparse, shared selections and the peer."""
    sizes, lengths = bench.sizes, _lengths(bench)

    def along(fastest: Callable[[Bench, int], str | None]) -> dict[int, float | None]:
        keys = {length: fastest(bench, length) for length in lengths}
        return {length: None if key is None else bench.seconds(key) for length, key in keys.items()}

    dense = along(fastest_dense)
    dense[sizes.longest] = dense[sizes.longest] or dense_longest(bench)
    series = [
        ("dense", dense),
        ("sparse", along(fastest_sparse)),
        ("sparse, shared selections", {length: bench.seconds(f"long/shared/{length}") for length in lengths}),
        ("transformers", along(fastest_peer)),
    ]
    return [
        Line(name, [(float(at), MILLION * value / at) for at, value in points.items() if value is not None], colour)
        for colour, (name, points) in enumerate(series)
    ]


def cost_drawing(lines: Sequence[Line], width: float = FULL, height: float = 380) -> Html:
    """The `<svg>` of the curves; empty when nothing was measured."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Html()
    size = frame(width, height, left=62)
    lengths = [at for line in lines for at, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    x = LengthScale(min(lengths) / 1.15, max(lengths) * 1.15, size.left, size.right, logarithmic=True)
    y = Scale(min(values) / 1.3, max(values) * 1.3, size.bottom, size.top, logarithmic=True)
    grid = axes(size, x, y, lambda at: thousands(round(at or 0)), _seconds, "prompt, tokens")
    return drawing(size, TITLE, grid, *(_curve(line, x, y) for line in lines))


def write_svg(lines: Sequence[Line], path: Path) -> None:
    """The drawing as a file of its own: the style sheet inside, title and legend above the plot."""
    width, height, above = 760.0, 380.0, 34.0
    body = cost_drawing(lines, width, height)
    parts = [element("text", "Seconds per million tokens", x=14.0, y=-12.0, class_="value")]
    left = 220.0
    for line in (line for line in lines if line.points):
        colour = f"var(--series-{line.colour})"
        parts.append(element("rect", x=left, y=-21.0, width=10.0, height=10.0, rx=2.0, fill=colour))
        parts.append(element("text", line.name, x=left + 15, y=-12.0, class_="tick"))
        left += 42 + 5.8 * len(line.name)
    style = element("style", _asset("page.css"), Html(".plot{background:var(--card);font-family:sans-serif}"))
    curves = Html(body[body.index(">") + 1 : body.rindex("</svg>")]) if body else Html()
    box = f"0 {-above:g} {width:g} {height + above:g}"
    whole = element("svg", style, curves, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=box, class_="plot")
    write_text_atomic(path, whole.replace("&#58;", ":") + "\n")


def write_page(bench: Bench, made: Sequence[Figure], path: Path) -> None:
    """The page: cards of figures, the curves, the table with notes and the machine."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "Baleen: bench model"),
        element("style", _asset("page.css")),
    )
    lines = cost_lines(bench)
    curves = cost_drawing(lines)
    keys = [(line.name, line.colour) for line in lines if line.points]
    chart = figure(TITLE, curves, keys, f"{NOTE} {_longest_note(bench)}".strip(), wide=True) if curves else Html()
    rows = [(one.name, one.ours, one.peer, ratio_text(one), one.target, verdict(one), one.note) for one in made]
    header = ("Figure", "Ours", "Other side", "Ratio", "Target", "", "How")
    main = element(
        "main",
        _header(bench, made),
        element("section", element("div", *(_card(one) for one in made), class_="cards")),
        element("section", element("h2", "What length costs"), element("div", chart, class_="grid")),
        element("section", element("h2", "Every figure"), table(header, rows, numeric=(3,))),
        element("section", element("h2", "Every prefill"), table(prefill_header(bench), prefill_rows(bench))),
        element("section", element("h2", "Every measurement"), _measurements(bench)),
    )
    body = element("body", main, element("div", id="tip", hidden=True), element("script", script))
    write_text_atomic(path, f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def _header(bench: Bench, made: Sequence[Figure]) -> Html:
    content = bench.results.content
    machine: dict[str, Any] = {**content["machine"], **(bench.results.get("machine") or {})}
    native = "native" if machine.get("native_bfloat16") else "not native"
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {machine.get('torch', '–')}, bf16 {native}"
    reached = f"{sum(one.met is True for one in made)} of {len(made)} targets met"
    quick = " A quick run on a tiny network: its numbers mean nothing." if bench.sizes.quick else ""
    return element(
        "header",
        element("p", "Baleen", class_="brand"),
        element("h1", "What the model costs"),
        element("p", f"{reached}.{quick}", class_="lede"),
        element("p", f"{where}. {content['date']}, commit {content['commit'] or 'unknown'}.", class_="note"),
    )


def _measurements(bench: Bench) -> Html:
    rows = []
    for key, entry in sorted(bench.results.content["measurements"].items()):
        seconds = min(entry["seconds"]) if isinstance(entry.get("seconds"), list) else None
        rate = entry.get("tokens_per_second") or (entry["length"] / seconds if seconds and "length" in entry else None)
        memory = f"{entry['memory_bytes'] / 1e9:.2f} GB" if "memory_bytes" in entry else "–"
        shown = f"{rate:,.0f}" if rate else "–"
        rows.append(
            (key, _seconds(seconds), shown, memory, entry.get("error", ""), f"{entry['date']}, {entry['commit']}")
        )
    header = ("Measurement", "Best time", "Tokens / s", "Peak above the weights", "", "When, commit")
    return table(header, rows, numeric=(1, 2, 3))


def _card(one: Figure) -> Html:
    state = "good" if one.met else "bad" if one.met is False else ""
    return element(
        "div",
        element("h3", one.name),
        element("p", ratio_text(one) if one.ratio is not None else one.ours, class_="figure"),
        element("p", "" if one.peer == "–" else f"{one.ours} against {one.peer}", class_="detail"),
        element("p", f"target {one.target}", element("b", verdict(one)), class_="target"),
        class_=f"card {state}".strip(),
    )


def _longest_note(bench: Bench) -> str:
    if dense_longest(bench) is None:
        return ""
    return f"Dense at {thousands(bench.sizes.longest)}: one layer measured, times the layers."


def _curve(line: Line, x: Scale, y: Scale) -> Html:
    points = [(x.place(at), y.place(value)) for at, value in line.points]
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
    dots = [
        element(
            "circle",
            element("title", f"{line.name}\n{thousands(round(at))}: {_seconds(value)} per million tokens"),
            cx=left,
            cy=top,
            r=4.0,
            class_="dot",
        )
        for (at, value), (left, top) in zip(line.points, points, strict=True)
    ]
    return element(
        "g", element("polyline", points=path, class_="curve"), *dots, style=f"--ink-series:var(--series-{line.colour})"
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _asset(name: str) -> Html:
    return Html(files("baleen.report").joinpath(name).read_text(encoding="utf-8"))
