"""What sparse attention keeps: the loss, the attention mass, needles in a haystack; and which positions it picks."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.evaluation.statistics import wilson_interval
from baleen.report.charts import Bar, Line, bar_chart, line_chart, raster
from baleen.report.markup import Html, element, join, missing, number, percent, table, whole_percent
from baleen.report.run_folder import Row, RunFolder, as_list, as_row

PHASES = (("after_warmup", "after warm-up"), ("after_sparse", "after sparse training"))
SELECTIONS = ("oracle", "selected", "recent", "random")
SELECTION_COLOURS = {"oracle": 6, "selected": 0, "recent": 1, "random": 7}
MOST_CELLS = 128
MOST_LAYERS = 8


def sparsity(run: RunFolder) -> Html:
    """Tables and figures from the sparse stage's measurements."""
    measured = as_row(run.artefact("sparse", "sparsity.json"))
    phases = [(name, as_row(measured.get(key))) for key, name in PHASES if as_row(measured.get(key))]
    if not phases:
        return missing("Sparse training has not left its measurements (sparsity.json) yet.")
    charts = [
        _mass_chart(phases),
        *(_mass_by_layer(name, phase) for name, phase in phases[-1:]),
        *(_needles(name, phase) for name, phase in phases),
    ]
    absent = [] if any(as_list(phase.get("needle")) for _, phase in phases) else ["needle-in-a-haystack accuracy"]
    absent += [] if charts[0] else ["attention mass"]
    note = missing(f"Not measured: {', '.join(absent)}.") if absent else Html()
    return join([_loss_table(phases), element("div", *charts, class_="grid"), note])


def selection_map(run: RunFolder) -> Html:
    """One raster for each layer: which key positions the queries of a long sequence picked."""
    found = as_row(run.artefact("sparse", "selection.json"))
    layers = [layer for layer in as_list(found.get("layers")) if isinstance(layer, dict)]
    tokens = [str(token) for token in as_list(found.get("tokens"))]
    drawn = [_layer(layer, tokens, found.get("index_topk")) for layer in _spread(layers)]
    maps = [chart for chart in drawn if chart]
    if not maps:
        return missing("Sparse training has not left the selection of a sequence (selection.json) yet.")
    across = 2 if len(maps) <= 2 else 3 if len(maps) % 3 == 0 or len(maps) == 5 else 4
    more = (
        f"{len(layers)} layers were recorded; {len(maps)} are drawn, evenly spread." if len(layers) > len(maps) else ""
    )
    return join(
        [
            element("div", *maps, class_=f"grid maps across-{across}"),
            element("p", more, class_="note") if more else Html(),
        ]
    )


def _loss_table(phases: Sequence[tuple[str, Row]]) -> Html:
    rows = []
    for name, phase in phases:
        loss = as_row(phase.get("validation_loss"))
        dense, sparse = number(loss.get("dense")), number(loss.get("sparse"))
        mass = as_row(phase.get("attention_mass"))
        selected, oracle = number(mass.get("selected")), number(mass.get("oracle"))
        excess = f"{100 * (sparse / dense - 1):+.2f}%" if sparse is not None and dense else "–"
        held = percent(selected / oracle) if selected is not None and oracle else "–"
        rows.append((name.capitalize(), *("–" if v is None else f"{v:.4f}" for v in (dense, sparse)), excess, held))
    header = ("", "Dense loss", "Sparse loss", "Difference", "Mass held, of the oracle's")
    return table(header, rows, numeric=(1, 2, 3, 4))


def _mass_chart(phases: Sequence[tuple[str, Row]]) -> Html:
    bars = [[Bar(number(as_row(phase.get("attention_mass")).get(key))) for key in SELECTIONS] for _, phase in phases]
    series = [(key, SELECTION_COLOURS[key]) for key in SELECTIONS]
    names = [name for name, _ in phases]
    return bar_chart(
        "Share of the true attention mass held",
        names,
        series,
        bars,
        y_format=percent,
        axis_format=whole_percent,
        y_range=(0.0, 1.0),
        note="Selections of equal size: the best one, the indexer's, the most recent, a random one.",
    )


def _mass_by_layer(name: str, phase: Row) -> Html:
    """`by_layer` may be one share per layer, or an object of all four for each layer."""
    by_layer = as_list(as_row(phase.get("attention_mass")).get("by_layer"))
    lines = []
    for key in SELECTIONS:
        values = [
            number(entry.get(key) if isinstance(entry, dict) else entry if key == "selected" else None)
            for entry in by_layer
        ]
        points = [(float(layer), value) for layer, value in enumerate(values) if value is not None]
        lines.append(Line(key, points, SELECTION_COLOURS[key]))
    return line_chart(
        f"Mass held by layer, {name}",
        lines,
        x_label="layer",
        y_format=percent,
        axis_format=whole_percent,
        y_range=(0.0, 1.0),
        smooth=False,
    )


def _needles(name: str, phase: Row) -> Html:
    entries = [entry for entry in as_list(phase.get("needle")) if isinstance(entry, dict)]
    groups = [percent(number(entry.get("depth")), 0) for entry in entries]
    bars = [[_needle_bar(entry, kind) for kind in ("dense", "sparse")] for entry in entries]
    return bar_chart(
        f"Needle found by depth, {name}",
        groups,
        [("dense", 7), ("sparse", 0)],
        bars,
        y_format=whole_percent,
        y_range=(0.0, 1.0),
        note="Depth 0% is the start of the context. Whiskers: 95% Wilson intervals.",
    )


def _needle_bar(entry: Row, kind: str) -> Bar:
    value, n = number(entry.get(kind)), number(entry.get("n"))
    if value is None or not n or not 0 <= value <= 1:
        return Bar(value)
    interval = wilson_interval(min(int(n), round(value * n)), int(n))
    return Bar(value, interval.low, interval.high, f" · n = {n:.0f}")


def _layer(layer: Row, tokens: Sequence[str], index_topk: object) -> Html:
    pairs = [
        (int(query), [int(key) for key in keys if _position(key)])
        for query, keys in zip(as_list(layer.get("queries")), as_list(layer.get("selected")), strict=False)
        if _position(query) and isinstance(keys, list)
    ]
    if not pairs:
        return Html()
    first, last = min(query for query, _ in pairs), max(query for query, _ in pairs)
    width = max([len(tokens), last + 1, *(max(keys) + 1 for _, keys in pairs if keys)])
    rows, columns = min(MOST_CELLS, len(pairs), last - first + 1), min(MOST_CELLS, width)
    binned: list[list[tuple[int, list[int]]]] = [[] for _ in range(rows)]
    for query, keys in pairs:
        binned[(query - first) * rows // (last - first + 1)].append((query, keys))
    shares = [_row_shares(members, width, columns) for members in binned]
    visible = [max((query + 1 for query, _ in members), default=0) / width for members in binned]
    tips = [_row_tip(members, tokens) for members in binned]
    note = _recent_share(pairs, number(index_topk))
    return raster(f"Layer {layer.get('layer', '?')}", shares, visible, tips, (first, last + 1), width, note)


def _row_shares(members: Sequence[tuple[int, list[int]]], width: int, columns: int) -> list[float]:
    """For each column the share of visible (query, key) pairs that were selected."""
    picked, visible = [0] * columns, [0] * columns
    starts = [-(-column * width // columns) for column in range(columns + 1)]
    for query, keys in members:
        for key in set(keys):
            picked[key * columns // width] += 1
        for column in range(columns):
            visible[column] += max(0, min(starts[column + 1], query + 1) - starts[column])
    return [hit / total if total else float(hit > 0) for hit, total in zip(picked, visible, strict=True)]


def _row_tip(members: Sequence[tuple[int, list[int]]], tokens: Sequence[str]) -> str:
    if not members:
        return "no query recorded here"
    query, keys = members[0]

    def named(position: int) -> str:
        return f"{position} {tokens[position]!r}"[:32] if position < len(tokens) else str(position)

    far = sorted(keys)[:6]
    return f"query {named(query)}\n{len(keys)} keys, the farthest:\n" + "\n".join(named(key) for key in far)


def _recent_share(pairs: Sequence[tuple[int, list[int]]], index_topk: float | None) -> str:
    """How local the picks are, over the queries that had more to choose from than they may keep."""
    if not index_topk:
        return ""
    choosing = [(query, keys) for query, keys in pairs if query + 1 > index_topk]
    total = sum(len(keys) for _, keys in choosing)
    recent = sum(1 for query, keys in choosing for key in keys if key > query - index_topk)
    local = (
        f" {percent(recent / total, 0)} of the picks lie among the last {index_topk:.0f} positions." if total else ""
    )
    return f"Top {index_topk:.0f} for each query.{local}"


def _spread(layers: Sequence[Row]) -> list[Row]:
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    return [layers[round(index * (len(layers) - 1) / (MOST_LAYERS - 1))] for index in range(MOST_LAYERS)]


def _position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
