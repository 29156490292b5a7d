"""A recipe's cost as tables: what `run --dry-run` and `plan` print. The arithmetic is in `estimate.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baleen.pipeline.estimate import (
    StageEstimate,
    attention_operations,
    cache_bytes_per_token,
    count_parameters,
    estimate_stage,
    measure_rate,
)
from baleen.pipeline.progress import duration
from baleen.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table

TRAINING_BYTES_PER_PARAMETER = 16
"""Weight, gradient and Adam's two moments, fp32 each."""


def plan_tables(recipe: Recipe, *, short: bool) -> list[Table]:
    """The stages with tokens and time; unless `short`, also the parameters by part and the memory."""
    rate = measure_rate(recipe.network())
    estimates = [(name, estimate_stage(recipe, name, rate)) for name in recipe.stages]
    return [_stages(recipe, estimates, rate)] if short else [_network(recipe), _stages(recipe, estimates, rate)]


def _stages(recipe: Recipe, estimates: list[tuple[str, StageEstimate | None]], rate: float) -> Table:
    from rich.table import Table

    parameters = count_parameters(recipe.network())
    table = Table(
        title=f"recipe {recipe.name}: {parameters.total:,} parameters, {parameters.active:,} active per token",
        caption=f"times are estimates, from {rate / 1e9:.0f} GFLOP/s of float32 matrix product measured here just now; "
        "trained and sampled count tokens; - is work whose size the recipe does not set",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("stage", no_wrap=True)
    for heading in ("trained", "sampled", "FLOP", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (name, estimate) in enumerate(estimates, start=1):
        cells = ("-",) * 4 if estimate is None else _cells(estimate)
        table.add_row(str(index), name.replace("_", " "), *cells)
    known = [estimate for _, estimate in estimates if estimate is not None]
    total = StageEstimate(
        name="",
        trained_tokens=sum(each.trained_tokens for each in known),
        sampled_tokens=sum(each.sampled_tokens for each in known),
        operations=sum(each.operations for each in known),
        seconds=sum(each.seconds for each in known),
    )
    table.add_section()
    table.add_row("", "together", *_cells(total))
    return table


def _cells(estimate: StageEstimate) -> tuple[str, str, str, str]:
    sampled = f"{estimate.sampled_tokens:,}" if estimate.sampled_tokens else "-"
    return f"{estimate.trained_tokens:,}", sampled, f"{estimate.operations:.2e}", f"≈ {duration(estimate.seconds)}"


def _network(recipe: Recipe) -> Table:
    from rich.table import Table

    config = recipe.network()
    parameters = count_parameters(config)
    table = Table(title=f"recipe {recipe.name}: the network", title_style="bold", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, count in parameters.by_part.items():
        table.add_row(f"parameters, {name}", f"{count:,}")
    table.add_section()
    table.add_row("parameters, total", f"{parameters.total:,}")
    table.add_row("parameters, active per token", f"{parameters.active:,}")
    table.add_section()
    training = parameters.total * TRAINING_BYTES_PER_PARAMETER
    table.add_row("memory of weights, gradients and Adam, fp32", _bytes(training))
    per_token = cache_bytes_per_token(config)
    longest = config.max_position_embeddings
    table.add_row("cache per token, bf16", f"{per_token:,} B")
    table.add_row(f"cache of one sequence of {longest:,} tokens", _bytes(per_token * longest))
    table.add_section()
    for context in (longest // 8, longest):
        for name, sparse in (("dense", False), ("sparse", True)):
            operations = attention_operations(config, context, sparse=sparse)
            table.add_row(f"attention of one token at {context:,}, {name}", f"{operations:.2e} FLOP")
    return table


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"
