"""The first screen: what the run was asked to show, what it measured, and the pipeline's table."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.report.markup import Html, compact, duration, element, join, missing, number, percent, spoken, table
from baleen.report.run_folder import Row, RunFolder, StageRecord, as_row
from baleen.report.svg import Format

TIME_TARGETS = {"nano": 25 * 60.0, "micro": 3 * 60.0}
MEMORY_TARGET = 6 * 2**30
LOSS_TARGET = 0.01
MASS_TARGET = 0.95
PASS_TARGET = 0.80
GAIN_TARGET = 0.20
FEWEST_TASKS = 200
GAP_TARGETS = {"float32": 1e-5, "fp32": 1e-5, "bfloat16": 1e-2, "bf16": 1e-2}
UNTRAINED_RECIPES = frozenset({"micro"})
"""Recipes too small to be held to the pass rates."""


@dataclass(frozen=True)
class Card:
    """One headline number. `met` is None where there is no target or nothing was measured."""

    name: str
    value: str
    detail: str
    target: str = ""
    met: bool | None = None


def headline(run: RunFolder) -> Html:
    """The cards."""
    if not run.summary:
        return missing("No summary.json yet: the headline numbers are written when the last stage has ended.")
    return element("div", *(_card(card) for card in cards(run)), class_="cards")


def recipe_name(run: RunFolder) -> str:
    """The recipe's name, or the run folder's."""
    value = run.summary.get("recipe") or run.summary.get("recipe_name")
    value = value.get("name") if isinstance(value, dict) else value
    return str(value or run.path.resolve().name)


def verdict(run: RunFolder) -> str:
    """How many of the recipe's targets are met; one that was not measured is not met."""
    if not run.summary:
        return "the run has not ended"
    held_to = [card for card in cards(run) if card.target.startswith("target")]
    return f"{sum(card.met is True for card in held_to)} of {len(held_to)} targets met"


def cards(run: RunFolder) -> list[Card]:
    """Every headline number with its target."""
    return [*_quality_cards(run), *_cost_cards(run)]


def pipeline_table(run: RunFolder) -> Html:
    """Each stage with its time, tokens and what it reached."""
    if not run.stages:
        return missing("No stage has run in this folder yet.")
    seconds = {stage.name: number(stage.summary.get("seconds")) for stage in run.stages}
    total, longest = sum(value or 0.0 for value in seconds.values()), max(value or 0.0 for value in seconds.values())
    rows: list[tuple[str, ...]] = []
    for index, stage in enumerate(run.stages, start=1):
        took, tokens = seconds[stage.name], number(stage.summary.get("tokens"))
        share = (took or 0.0) / longest if longest else 0.0
        meter = element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="meter")
        rate = compact(tokens / took) if tokens and took else "–"
        name = join([stage.title, element("span", spoken(stage.name), class_="dim small")], " ")
        cell_name = name if stage.title.lower() != spoken(stage.name).lower() else Html(element("span", stage.title))
        rows.append((str(index), cell_name, duration(took), meter, compact(tokens or None), rate, key_result(stage)))
    tokens_total = sum(number(stage.summary.get("tokens")) or 0.0 for stage in run.stages)
    rows.append(("", element("b", "All stages"), duration(total or None), "", compact(tokens_total or None), "", ""))
    return table(
        ("", "Stage", "Time", "", "Tokens", "Tokens / s", "Result"), rows, numeric=(2, 4, 5), class_="pipeline"
    )


def key_result(stage: StageRecord) -> str:
    """One line: from where to where the stage's main curve went, or what its summary says."""
    if isinstance(stage.summary.get("result"), str):
        return str(stage.summary["result"])
    if stage.reinforced:
        return _joined(_from_to(stage, "reward", "reward"), _from_to(stage, "outcome", "outcome", percent))
    if stage.column("loss") or stage.column("kl"):
        loss = "" if stage.column("loss") == stage.column("kl") else _from_to(stage, "loss", "loss")
        return _joined(loss, _from_to(stage, "kl", "KL"), _last(stage, "validation_loss", "validation"))
    known = {"name", "title", "seconds", "tokens", "index"}
    facts = [
        f"{spoken(key)} {compact(number(value)) if number(value) is not None else value}"
        for key, value in stage.summary.items()
        if key not in known
        and isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and len(str(value)) < 40
    ]
    return " · ".join(facts[:4])


def _quality_cards(run: RunFolder) -> list[Card]:
    rates = as_row(run.summary.get("pass_at_1"))
    final, start, unseen = (as_row(rates.get(name)) for name in ("mixed_rl", "cold_start", "unseen_tools"))
    value, before = number(final.get("value")), number(start.get("value"))
    judged = recipe_name(run) not in UNTRAINED_RECIPES
    whose = "" if judged else "nano's "
    enough = (number(final.get("n")) or 0) >= FEWEST_TASKS
    gain = None if value is None or before is None else value - before
    loss = as_row(run.summary.get("validation_loss"))
    dense, sparse = number(loss.get("dense")), number(loss.get("sparse"))
    excess = None if dense is None or sparse is None or dense <= 0 else sparse / dense - 1
    mass = {key: number(share) for key, share in as_row(run.summary.get("attention_mass")).items()}
    selected, oracle = mass.get("selected"), mass.get("oracle")
    held = None if selected is None or not oracle else selected / oracle
    pass_detail = _interval(final) + ("" if enough or value is None else f" · fewer than {FEWEST_TASKS} tasks")
    return [
        Card(
            "Pass@1 after mixed RL",
            percent(value),
            pass_detail or "unseen tasks, trained environments",
            f"{whose}target ≥ {percent(PASS_TARGET, 0)}",
            _met(judged and enough, value, PASS_TARGET),
        ),
        Card(
            "Gain over the cold start",
            "–" if gain is None else f"{100 * gain:+.1f} points",
            f"from {percent(before)} {_interval(start)}" if before is not None else "cold start not measured",
            f"{whose}target ≥ {100 * GAIN_TARGET:.0f} points",
            _met(judged, gain, GAIN_TARGET),
        ),
        Card(
            "Pass@1 with unseen tools",
            percent(number(unseen.get("value"))),
            _interval(unseen) or "not measured",
            "no target: measured and shown",
        ),
        Card(
            "Sparse against dense loss",
            "–" if excess is None else f"{100 * excess:+.2f}%",
            f"dense {_fixed(dense)} · sparse {_fixed(sparse)}",
            "target within 1%",
            None if excess is None else excess <= LOSS_TARGET,
        ),
        Card(
            "Attention mass held",
            percent(held),
            f"oracle {percent(oracle)} · recent {percent(mass.get('recent'))} · random {percent(mass.get('random'))}",
            "target ≥ 95% of the oracle, at least half the way from recent or random to it",
            _met(True, held, MASS_TARGET) and _beats_the_floor(mass),
        ),
    ]


def _beats_the_floor(mass: dict[str, float | None]) -> bool:
    """Whether the selection lies well above what needs no indexer. Where attention is even, any selection of a size
    holds as much as the oracle's, and nothing was learned."""
    selected, oracle, recent, random = (mass.get(name) for name in ("selected", "oracle", "recent", "random"))
    if selected is None or oracle is None or recent is None or random is None:
        return False
    floor = max(recent, random)
    return selected - floor >= 0.5 * (oracle - floor)


def _cost_cards(run: RunFolder) -> list[Card]:
    gap = as_row(run.summary.get("logprob_gap"))
    dtype = str(gap.get("dtype", "")).removeprefix("torch.")
    without = compact(number(gap.get("without_replay")))
    replay, limit = number(gap.get("replay")), GAP_TARGETS.get(dtype)
    wall, time_limit = number(run.summary.get("wall_seconds")), TIME_TARGETS.get(recipe_name(run))
    memory = number(run.summary.get("peak_rss_bytes"))
    return [
        Card(
            "Sampler–trainer gap",
            compact(replay),
            f"mean |Δ log p| · {without} without replay",
            f"target < {limit:g} in {dtype}" if limit else "",
            None if replay is None or not limit else replay < limit,
        ),
        Card(
            "Wall time",
            duration(wall),
            "the whole recipe",
            f"target < {duration(time_limit).removesuffix(' 00 s')}" if time_limit else "",
            None if wall is None or not time_limit else wall < time_limit,
        ),
        Card(
            "Peak memory",
            "–" if memory is None else f"{memory / 2**30:.2f} GiB",
            "resident, whole process",
            "target < 6 GiB",
            None if memory is None else memory < MEMORY_TARGET,
        ),
    ]


def _card(card: Card) -> Html:
    mark = {True: ("good", "met"), False: ("bad", "not met"), None: ("", "")}[card.met]
    target = join([card.target, element("b", mark[1])], " ") if mark[1] else card.target
    return element(
        "div",
        element("h3", card.name),
        element("p", card.value, class_="figure"),
        element("p", card.detail, class_="detail"),
        element("p", target, class_="target"),
        class_=f"card {mark[0]}".strip(),
    )


def _met(judged: bool, value: float | None, target: float) -> bool | None:
    return value >= target if judged and value is not None else None


def _interval(rate: Row) -> str:
    low, high, n = (number(rate.get(key)) for key in ("low", "high", "n"))
    parts = [f"[{100 * low:.1f}, {100 * high:.1f}]"] if low is not None and high is not None else []
    return " · ".join([*parts, *([f"n = {n:.0f}"] if n is not None else [])])


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _from_to(stage: StageRecord, column: str, label: str, form: Format = compact) -> str:
    """The mean of the first and of the last tenth of a curve; one step of it would be noise."""
    values = [value for _, value in stage.column(column)]
    if not values:
        return ""
    tenth = max(1, len(values) // 10)
    first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    return f"{label} {form(first)} → {form(last)}"


def _last(stage: StageRecord, column: str, label: str) -> str:
    values = stage.column(column)
    return f"{label} {compact(values[-1][1])}" if values else ""


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
