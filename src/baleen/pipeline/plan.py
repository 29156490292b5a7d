"""A cost as tables: what `run --dry-run` and `plan` print. The arithmetic is in `model/arithmetic.py` (a network),
`devices.py` (memory) and `estimate.py` (a recipe's stages).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from baleen.model.arithmetic import (
    MTP,
    cache_bytes_per_token,
    cache_layer_bytes,
    count_parameters,
    forward_flops,
    indexing_layers,
    pair_flops,
)
from baleen.model.config import ModelConfig
from baleen.pipeline.devices import (
    GIB,
    MIB,
    USABLE,
    Devices,
    OptimizerName,
    parse_devices,
    serving_memory,
    training_memory,
)
from baleen.pipeline.estimate import StageEstimate, estimate_stage, measure_rate
from baleen.pipeline.networks import WELL_KNOWN, PlanError, read_subject
from baleen.pipeline.progress import duration
from baleen.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table

CONTEXTS = (4_096, 32_768, 131_072)
"""Context lengths that operations are shown at, as far as the network reaches."""

WIDTH = 72
"""Columns that a table takes at least: the titles fit, and a terminal of 80 holds it."""

FLOP_UNITS = ((1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))

OPTIMIZERS: tuple[OptimizerName, ...] = ("AdamW", "Muon")
PUBLISHED = "DeepSeek-V3 is published with 671B parameters, 37B active, without indexers and MTP layer"
PUBLISHED_LATENT = "Published in FP8: 656 B"
PUBLISHED_CACHE = f"{PUBLISHED_LATENT} and 132 B"


def plan_tables(
    subject: str,
    overrides: Sequence[str] = (),
    *,
    devices: str | None = None,
    context: int | None = None,
    tokens: int = 4_096,
) -> list[Table]:
    """The tables of `baleen plan`: parameters, operations and cache of the network; with `devices`, the memory of each
    for training on `tokens` tokens and for serving sequences of `context` tokens; the stages of a recipe.

    Raises `PlanError`, `DevicesError`, `RecipeError` or `UnsupportedCheckpointError`.
    """
    machine = None if devices is None else parse_devices(devices)
    found = read_subject(subject, overrides)
    config = found.network() if isinstance(found, Recipe) else found
    longest = config.max_position_embeddings
    context = min(CONTEXTS[-1], longest) if context is None else context
    if not 0 < context <= longest:
        raise PlanError(f"--context {context}: the network takes 1 to {longest} tokens (max_position_embeddings)")
    if tokens < 1:
        raise PlanError(f"--tokens {tokens}: at least one token per device")
    tables = [_parameters(subject, config), _operations(config), _cache(config, context)]
    if machine is not None:
        tables += [_training(config, machine, tokens), _serving(config, machine, context)]
    return [*tables, stages_table(found)] if isinstance(found, Recipe) else tables


def stages_table(recipe: Recipe) -> Table:
    """The stages with their tokens, operations and estimated time on this machine."""
    rate = measure_rate(recipe.network())
    estimates = [(name, estimate_stage(recipe, name, rate)) for name in recipe.stages]
    parameters = count_parameters(recipe.network())
    table = _table(
        f"recipe {recipe.name}: {parameters.total:,} parameters, {parameters.active:,} active per token",
        ["", "stage"],
        ["trained", "sampled", "FLOP", "time"],
        f"times are estimates, from {rate / 1e9:.0f} GFLOP/s of float32 matrix product measured here just now; "
        "trained and sampled count tokens; - is work whose size the recipe does not set",
    )
    for index, (name, estimate) in enumerate(estimates, start=1):
        cells = ("-",) * 4 if estimate is None else _stage_cells(estimate)
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
    table.add_row("", "together", *_stage_cells(total))
    return table


def _stage_cells(estimate: StageEstimate) -> tuple[str, str, str, str]:
    sampled = f"{estimate.sampled_tokens:,}" if estimate.sampled_tokens else "-"
    return f"{estimate.trained_tokens:,}", sampled, f"{estimate.operations:.2e}", f"≈ {duration(estimate.seconds)}"


def _parameters(subject: str, config: ModelConfig) -> Table:
    counted = count_parameters(config)
    note = "active: multiplied with each token; a look-up in the embedding is not, experts count as far as chosen. "
    note += f"Beside the total: {counted.gate_biases:,} gate biases, moved by balancing, not learned"
    if config in WELL_KNOWN.values():
        note += f". {PUBLISHED}"
    table = _table(f"{subject}: parameters", ["part"], ["in all", "active per token"], note)
    for part, count in counted.by_part.items():
        if count:
            table.add_row(
                part, f"{count:,}", f"{counted.active_by_part[part]:,}" if counted.active_by_part[part] else "-"
            )
    table.add_section()
    table.add_row("total", f"{counted.total:,}", f"{counted.active:,}")
    extra = counted.by_part["indexer"] + counted.by_part[MTP]
    if extra:
        active = counted.active - counted.active_by_part["indexer"]
        table.add_row("without indexers and MTP layer", f"{counted.total - extra:,}", f"{active:,}")
    return table


def _operations(config: ModelConfig) -> Table:
    longest = config.max_position_embeddings
    contexts = [context for context in CONTEXTS if context <= longest] or [max(1, longest // 8), longest]
    scale, unit = _flop_unit(forward_flops(config, contexts[-1], sparse=False, decoding=True).total)
    columns = ["linear\nlayers", "dense\nattention", "dense\ntotal"]
    if config.sparse:
        columns += ["indexer", "sparse\nattention", "sparse\ntotal", "dense:\nsparse"]
    table = _table(f"{unit} per token by context length", ["keys"], columns, _operations_note(config))

    def cells(*values: float) -> list[str]:
        return [f"{value / scale:,.1f}" if value < 1_000 * scale else f"{value / scale:,.0f}" for value in values]

    for phase in ("prefill", "decode"):
        table.add_row(phase)
        for context in contexts:
            dense = forward_flops(config, context, sparse=False, decoding=phase == "decode")
            row = cells(dense.weights, dense.attention, dense.total)
            if config.sparse:
                sparse = forward_flops(config, context, sparse=True, decoding=phase == "decode")
                row += cells(sparse.indexer, sparse.attention, sparse.total)
                row.append(f"{dense.total / sparse.total:.2f}")
            table.add_row(f"{context:,}", *row, end_section=context == contexts[-1])
    return table


def _operations_note(config: ModelConfig) -> str:
    pair = pair_flops(config)
    note = (
        "forward pass of one token that sees so many keys, without the MTP layer; linear layers: projections, experts, "
        f"routers, head. A query-key pair takes per layer {pair.mha / 1e3:,.1f} kFLOP with keys and values expanded "
        f"(MHA: prefill), {pair.mqa / 1e3:,.1f} absorbed (MQA: decode)"
    )
    if config.sparse:
        note += (
            f", {pair.indexer / 1e3:,.1f} in the indexer. Sparse attention is MQA over {config.index_topk:,} chosen "
            "keys, in prefill masked MHA where that is less"
        )
    return note + ". Training takes three times the prefill, four with recomputation"


def _cache(config: ModelConfig, context: int) -> Table:
    (latent, index), (latent_fp8, index_fp8) = cache_layer_bytes(config), cache_layer_bytes(config, "fp8")
    indexing = len(indexing_layers(config))
    layers = f"{config.num_hidden_layers} layers"
    if indexing not in (0, config.num_hidden_layers):
        layers += f", {indexing} with an index key"
    plain, quantised = cache_bytes_per_token(config), cache_bytes_per_token(config, "fp8")
    note = "FP8: e4m3 values with an fp32 scale per 128; the rope key stays bf16"
    if config in WELL_KNOWN.values():
        note += f". {PUBLISHED_CACHE if config.sparse else PUBLISHED_LATENT}"
    table = _table("cache", ["of"], ["bf16", "FP8"], note)
    table.add_row("a token and layer: latent and rope key", f"{latent:,} B", f"{latent_fp8:,} B")
    if indexing:
        table.add_row("a token and layer: index key", f"{index:,} B", f"{index_fp8:,} B")
    table.add_row(f"a token, {layers}", f"{plain:,} B", f"{quantised:,} B")
    table.add_row(f"a sequence of {context:,} tokens", _bytes(plain * context), _bytes(quantised * context))
    return table


def _training(config: ModelConfig, devices: Devices, tokens: int) -> Table:
    each = [training_memory(config, devices, name, tokens) for name in OPTIMIZERS]
    kept = "each layer's input" + (" and its indexer's choice" if config.sparse else "")
    note = f"activations: {kept}, and one layer recomputed at a time, in bf16; the loss is made in chunks. "
    note += "Muon keeps one moment of each matrix, AdamW two of every parameter"
    if devices.count > 1:
        note += (
            ". States are sharded evenly: FSDP2, experts by expert parallelism. Gathered: embedding, head, two layers "
            "without their routed experts and the gradients of one"
        )
    table = _table(f"training on {_machine(devices)}, per device", ["what"], list(OPTIMIZERS), note)
    for row, values in (
        ("weights, bf16", [memory.weights for memory in each]),
        ("gradients, fp32", [memory.gradients for memory in each]),
        ("master weights, fp32", [memory.master_weights for memory in each]),
        ("optimiser moments, fp32", [memory.moments for memory in each]),
        ("gathered layers, bf16", [memory.gathered for memory in each]),
        (f"activations of {tokens:,} tokens", [memory.activations for memory in each]),
    ):
        if any(values):
            table.add_row(row, *map(_bytes, values))
    table.add_section()
    table.add_row("together", *(_bytes(memory.total) for memory in each))
    table.add_row(f"fits in {_bytes(devices.usable)}", *("yes" if memory.fits else "no" for memory in each))
    table.add_row("fewest such devices that would do", *(_fewest(memory.devices_needed) for memory in each))
    if any(memory.fits for memory in each):
        table.add_row("tokens per device that would fit", *(f"{memory.tokens_that_fit:,}" for memory in each))
    return table


def _serving(config: ModelConfig, devices: Devices, context: int) -> Table:
    each = [serving_memory(config, devices, precision, context) for precision in ("bf16", "fp8")]
    note = (
        "a sequence's cache is on one device. FP8: weights in 128x128 blocks, but not embedding, head, routers, norms"
    )
    if config.num_nextn_predict_layers:
        note += "; the MTP layer's weights are held, its cache is not counted"
    here = -(-config.n_routed_experts // devices.count)
    table = _table(f"serving on {_machine(devices)}, per device", ["what"], ["bf16", "FP8"], note)
    table.add_row("weights that each device holds", *(_bytes(memory.whole) for memory in each))
    if any(memory.experts for memory in each):
        table.add_row(f"experts, {here} of {config.n_routed_experts} per layer", *(_bytes(m.experts) for m in each))
    table.add_row(f"left of {_bytes(devices.usable)} for the cache", *(_bytes(m.left) if m.left else "-" for m in each))
    table.add_row(f"cache of one sequence of {context:,} tokens", *(_bytes(memory.sequence) for memory in each))
    table.add_section()
    table.add_row("weights and one sequence fit", *("yes" if memory.fits else "no" for memory in each))
    table.add_row("fewest such devices that would do", *(_fewest(memory.devices_needed) for memory in each))
    table.add_row("sequences that fit, per device", *(f"{memory.sequences:,}" for memory in each))
    if devices.count > 1:
        table.add_row("sequences that fit, together", *(f"{memory.sequences * devices.count:,}" for memory in each))
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str], caption: str) -> Table:
    """An empty table with `left` columns of words and `right` columns of numbers."""
    from rich.table import Table

    table = Table(title=title, caption=caption, title_style="bold", min_width=WIDTH)
    table.title_justify = table.caption_justify = "left"
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _machine(devices: Devices) -> str:
    each = "" if devices.name.endswith("GiB") else f"{_bytes(devices.bytes_each)} each, "
    return f"{devices.count} x {devices.name} ({each}{USABLE:.0%} handed out)"


def _fewest(needed: int | None) -> str:
    return "no number" if needed is None else f"{needed:,}"


def _flop_unit(largest: float) -> tuple[float, str]:
    return next((unit for unit in FLOP_UNITS if largest >= 10 * unit[0]), FLOP_UNITS[-1])


def _bytes(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"
