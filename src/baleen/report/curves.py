"""The training curves: losses of the text stages, and what reinforcement learning did step by step."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.report.charts import Bar, Line, bar_chart, line_chart
from baleen.report.markup import Html, compact, element, join, missing, number, percent, spoken, whole_percent
from baleen.report.run_folder import RunFolder, StageRecord, as_list, as_row
from baleen.report.svg import Format

TEXT_STAGES = ("pretrain", "indexer_warmup", "sparse", "cold_start", "distill")
RL_STAGES = ("specialist_tools", "specialist_arithmetic", "mixed_rl")
RL_COLOURS = {"specialist_tools": 1, "specialist_arithmetic": 2, "mixed_rl": 0}

# column, title, format, share (axis 0 to 1), logarithmic, note
RL_FIGURES: tuple[tuple[str, str, Format, bool, bool, str], ...] = (
    ("reward", "Reward", compact, False, False, "Mean over the step's scored samples, shaping included."),
    ("outcome", "Outcome", percent, True, False, "Share of scored samples that the verifier accepted."),
    ("kl", "KL to the reference", compact, False, False, "Unbiased estimate, nats per sampled token."),
    ("entropy", "Entropy of the sampled distribution", compact, False, False, "Nats per sampled token."),
    ("mismatch", "Sampler–trainer mismatch", compact, False, True, "Mean |log p(sampler) − log p(trainer)|."),
    ("clip_fraction", "Clipped tokens", percent, False, False, ""),
    ("mask_fraction", "Masked sequences", percent, False, False, "Dropped by off-policy sequence masking."),
    ("length_mean", "Sampled tokens per episode", compact, False, False, ""),
    ("groups_used", "Groups with a gradient", compact, False, False, "Groups whose members differ in reward."),
    ("reward_length", "Length reward", compact, False, False, "Given only where the outcome is right."),
    ("reward_language", "Language reward", compact, False, False, "Given only where the outcome is right."),
    ("tokens_per_second", "Tokens per second", compact, False, False, "Sampling and training together."),
)  # fmt: skip


def text_curves(run: RunFolder) -> Html:
    """Losses of every stage that learned from text."""
    charts: list[Html] = []
    absent = []
    extra = [stage.name for stage in run.stages if stage.column("loss") and not stage.reinforced]
    for name in dict.fromkeys([*TEXT_STAGES, *extra]):
        stage = run.stage(name)
        drawn = _text_stage(stage) if stage and not stage.reinforced else []
        charts += drawn
        if not drawn:
            absent.append(spoken(name))
    note = missing(f"Not run yet, or no metrics left: {', '.join(absent)}.") if absent else Html()
    return join([element("div", *charts, class_="grid"), note])


def rl_curves(run: RunFolder) -> Html:
    """One figure per quantity, one curve per stage."""
    extra = [stage.name for stage in run.stages if stage.reinforced]
    found = [run.stage(name) for name in dict.fromkeys([*RL_STAGES, *extra])]
    stages = [stage for stage in found if stage and stage.rows]
    if not stages:
        return missing("No reinforcement learning stage has run yet.")
    charts: list[Html] = []
    for column, title, y_format, share, logarithmic, note in RL_FIGURES:
        chart = line_chart(
            title,
            [Line(stage.title, stage.column(column), _rl_colour(stage.name)) for stage in stages],
            y_format=y_format,
            axis_format=whole_percent if share else None,
            from_zero=not logarithmic,
            y_range=(0.0, 1.0) if share else None,
            logarithmic=logarithmic,
            note=note,
        )
        charts.append(chart)
        if column == "outcome":
            charts += [_outcome_by_domain(stage) for stage in stages]
    charts += [_ratio_histogram(stage) for stage in stages]
    absent = [spoken(name) for name in RL_STAGES if name not in {stage.name for stage in stages}]
    note = missing(f"Not run yet: {', '.join(absent)}.") if absent else Html()
    return join([element("div", *charts, class_="grid"), note])


def _text_stage(stage: StageRecord) -> list[Html]:
    x_label = "tokens" if stage.rows and all(number(row.get("tokens")) is not None for row in stage.rows) else "step"
    losses = [
        Line(name, stage.column(column, x_label), colour)
        for column, name, colour in (
            ("loss", "training", 0),
            ("validation_loss", "validation", 1),
            ("mtp_loss", "MTP head", 2),
        )
    ]
    divergence = [Line("KL", stage.column("kl", x_label), 4)]
    balance = [Line("most loaded expert", stage.column("load_max", x_label), 3)]
    kl_is_the_loss = losses[0].points == divergence[0].points
    charts = [
        line_chart(f"{stage.title}: loss", [] if kl_is_the_loss else losses, x_label=x_label, note="Nats per token."),
        line_chart(
            f"{stage.title}: indexer KL",
            divergence,
            x_label=x_label,
            note="Between the head-summed attention and the indexer's distribution.",
        ),
        line_chart(f"{stage.title}: expert load", balance, x_label=x_label, note="Load of the busiest expert."),
    ]
    return [chart for chart in charts if chart]


def _outcome_by_domain(stage: StageRecord) -> Html:
    domains = sorted({key for row in stage.rows for key in row if key.startswith("outcome_")})
    lines = [
        Line(spoken(key.removeprefix("outcome_")), stage.column(key), 3 + index) for index, key in enumerate(domains)
    ]
    return (
        line_chart(
            f"{stage.title}: outcome by domain", lines, y_format=percent, axis_format=whole_percent, y_range=(0.0, 1.0)
        )
        if len(lines) > 1
        else Html()
    )


def _ratio_histogram(stage: StageRecord) -> Html:
    """The last step's importance ratios, where the stage logs `{"edges": [...], "counts": [...]}`."""
    logged: Sequence[object] = [row["ratio_histogram"] for row in stage.rows if row.get("ratio_histogram")]
    shape = as_row(logged[-1]) if logged else {}
    counts = [number(value) for value in as_list(shape.get("counts"))]
    edges = [number(value) for value in as_list(shape.get("edges"))]
    if not counts or len(edges) != len(counts) + 1:
        return Html()
    names = [compact(edge) for edge in edges[:-1]]
    return bar_chart(
        f"{stage.title}: importance ratios, last step",
        names,
        [("tokens", _rl_colour(stage.name))],
        [[Bar(count)] for count in counts],
        note="Each bar begins at the ratio below it.",
    )


def _rl_colour(name: str) -> int:
    return RL_COLOURS.get(name, 5)
