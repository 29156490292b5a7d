"""Held-out scores: checkpoints beside each other by domain, difficulty, mode and number of attempts, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baleen.report.charts import Bar, bar_chart
from baleen.report.markup import Html, element, join, missing, number, percent, spoken, table, titled, whole_percent
from baleen.report.run_folder import Row, RunFolder, as_list, as_row

CHECKPOINTS = ("cold_start", "specialist_tools", "specialist_arithmetic", "distill", "distilled", "mixed_rl")
COLOURS = {
    "cold_start": 7,
    "specialist_tools": 1,
    "specialist_arithmetic": 2,
    "distill": 4,
    "distilled": 4,
    "mixed_rl": 0,
}
MOST_ROWS = 400


def scores(run: RunFolder) -> Html:
    """Figures of the main comparisons, and the whole table folded below them."""
    found = as_list(as_row(run.artefact("evaluation", "results.json")).get("rows"))
    rows = [row for row in found if isinstance(row, dict) and row.get("checkpoint")]
    if not rows:
        return missing("The evaluation has not left results (results.json) yet.")
    checkpoints = _ordered(rows)
    table_ = element("details", element("summary", f"All {len(rows)} measurements"), _full_table(rows, checkpoints))
    return join([element("div", *_figures(rows, checkpoints), class_="grid"), table_])


def _figures(rows: Sequence[Row], checkpoints: Sequence[str]) -> list[Html]:
    series = [(spoken(name), COLOURS.get(name, 5)) for name in checkpoints]

    def compare(title: str, field: str, note: str = "", wide: bool = False, **fixed: Any) -> Html:
        """Groups along `field`; every other dimension is held at `fixed` or at its aggregate."""
        where = {"split": "test", "mode": "all", "difficulty": "all", "k": 1} | fixed
        where.pop(field, None)
        chosen = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
        chosen = chosen or _without_aggregate(rows, where, field)
        if field != "domain" and "domain" not in where:
            chosen = _one_domain(chosen)
        groups = _values(chosen, field)
        bars = [[_bar(chosen, field, group, name) for name in checkpoints] for group in groups]
        names = [f"{spoken(str(group))}" if field != "k" else f"pass@{group}" for group in groups]
        used = [index for index in range(len(checkpoints)) if any(group[index].value is not None for group in bars)]
        return bar_chart(
            title,
            names,
            [series[index] for index in used],
            [[group[index] for index in used] for group in bars],
            y_format=whole_percent,
            y_range=(0.0, 1.0),
            wide=wide,
            note=note,
        )

    by_difficulty = [
        compare(f"Pass@1 by difficulty: {spoken(str(domain))}", "difficulty", domain=domain)
        for domain in _values([row for row in rows if row.get("difficulty") != "all"], "domain")
    ]
    return [
        compare("Pass@1 by domain, held-out tasks", "domain", "Temperature 1.0. Whiskers: 95% intervals.", wide=True),
        *by_difficulty,
        compare(
            "Trained tools and unseen tools",
            "split",
            "test: trained tools, unseen tasks; unseen: tools never trained on.",
            **_tools_domain(rows),
        ),
        compare("Thinking and non-thinking", "mode", **_tools_domain(rows)),
        compare("One attempt and four", "k", **_tools_domain(rows)),
    ]


def _full_table(rows: Sequence[Row], checkpoints: Sequence[str]) -> Html:
    """One line per setting, one column per checkpoint; n and the interval show on hover."""
    keys = ("domain", "split", "difficulty", "mode", "k")
    settings: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        settings.setdefault(tuple(str(row.get(key, "–")) for key in keys), {})[str(row["checkpoint"])] = row
    body = [
        (*(spoken(part) for part in setting), *(_cell(by_checkpoint.get(name)) for name in checkpoints))
        for setting, by_checkpoint in sorted(settings.items())[:MOST_ROWS]
    ]
    header = ("Domain", "Split", "Difficulty", "Mode", "k", *(titled(name) for name in checkpoints))
    cut = missing(f"The first {MOST_ROWS} of {len(settings)} settings.") if len(settings) > MOST_ROWS else Html()
    return join([table(header, body, numeric=range(4, len(header))), cut])


def _cell(row: Row | None) -> Html:
    if row is None:
        return element("span", "–", class_="dim")
    low, high, n = (number(row.get(key)) for key in ("low", "high", "n"))
    between = f"{100 * low:.0f}–{100 * high:.0f}" if low is not None and high is not None else ""
    count = f"n = {n:.0f}" if n is not None else ""
    value = percent(number(row.get("value")))
    return element("span", value, element("span", between, class_="dim small between"), title=count)


def _bar(rows: Sequence[Row], field: str, group: Any, checkpoint: str) -> Bar:
    for row in rows:
        if row.get(field) == group and row["checkpoint"] == checkpoint:
            value, low, high, n = (number(row.get(key)) for key in ("value", "low", "high", "n"))
            between = f" [{percent(low)}, {percent(high)}]" if low is not None and high is not None else ""
            return Bar(value, low, high, f"{between} · n = {n:.0f}" if n is not None else between)
    return Bar(None)


def _ordered(rows: Sequence[Row]) -> list[str]:
    found = list(dict.fromkeys(str(row["checkpoint"]) for row in rows))
    return [name for name in CHECKPOINTS if name in found] + [name for name in found if name not in CHECKPOINTS]


def _values(rows: Sequence[Row], field: str) -> list[Any]:
    """The values of a dimension in a reader's order, its aggregate left out where there is anything else."""
    found = list(dict.fromkeys(row[field] for row in rows if isinstance(row.get(field), str | int)))
    parts = [value for value in found if value != "all"] or found
    return sorted(parts, key=lambda value: (value == "unseen", value if isinstance(value, int) else 0))


def _without_aggregate(rows: Sequence[Row], where: Row, field: str) -> list[Row]:
    """Where no aggregate over modes was measured, the thinking mode stands in for it."""
    relaxed = where | {"mode": "thinking"} if field != "mode" else where
    return [row for row in rows if all(row.get(key) == value for key, value in relaxed.items())]


def _one_domain(rows: Sequence[Row]) -> list[Row]:
    """Bars of one figure must not mix domains: the aggregate if there is one, else the first."""
    domains = _values(rows, "domain")
    kept = "all" if any(row.get("domain") == "all" for row in rows) else domains[0] if domains else None
    return [row for row in rows if row.get("domain") == kept]


def _tools_domain(rows: Sequence[Row]) -> Row:
    return {"domain": "tools"} if any(row.get("domain") == "tools" for row in rows) else {}
