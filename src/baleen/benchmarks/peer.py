"""The same measurements of `transformers`: its DeepSeek-V3.2 reads prompts, its DeepSeek-V3 is pre-trained.

The weights are ours, saved and loaded there. The choices that a user of `transformers` has (attention, experts, cache,
dtype) are tried one after the other, and the fastest form stands for it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from baleen.benchmarks.clock import PeakMemory, best_of, timed
from baleen.benchmarks.networks import BENCHMARK, DTYPES, QUICK, build, token_ids
from baleen.benchmarks.ours import WARMUP_LENGTH
from baleen.model.checkpoint import save_model
from baleen.model.prefill import prefill
from baleen.pipeline.loading import load_recipe

PREFILL_CHOICES: Sequence[dict[str, Any]] = (
    {"attention": "sdpa", "experts": "grouped_mm", "use_cache": False},
    *({"experts": "eager"}, {"attention": "eager"}, {"use_cache": True}),
)
"""A first form and changes to it: each is tried on the best so far. `batched_mm` is left out: it copies an expert's
weights for every token, several times slower here and gigabytes at 1K tokens."""

TRAINING_CHOICES: Sequence[dict[str, Any]] = (
    {"attention": "sdpa", "experts": "grouped_mm", "autocast": False},
    *({"experts": "eager"}, {"attention": "eager"}, {"autocast": True}),
)

COMPARED_LENGTH = 1024
"""Tokens of the prompt on which the logits are held to ours."""

TRIAL_STEPS = 2
HOPELESS = 3.0
"""A dtype this many times slower than the other is not measured further."""


def _theirs(fields: Mapping[str, Any], dtype: str, attention: str, experts: str) -> Any:
    """Their model with our weights."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours = build(fields)
    theirs = transformers.DeepseekV32ForCausalLM if ours.config.sparse else transformers.DeepseekV3ForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, Path(folder) / "model")
        return theirs.from_pretrained(
            Path(folder) / "model",
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            experts_implementation=experts,
        )


def _read(model: Any, ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=use_cache, logits_to_keep=1).logits
    return logits


def _fastest(
    choices: Sequence[dict[str, Any]], cost: Callable[[dict[str, Any]], float], hopeless: float = math.inf
) -> list[dict[str, Any]]:
    """The forms that were tried, fastest first: one choice after the other, each kept where it costs less `seconds`
    (None where it fails). Stops when one costs more than `hopeless`."""
    tried: list[dict[str, Any]] = []
    best: tuple[float, dict[str, Any]] = (math.inf, choices[0])
    for change in choices:
        form = {**best[1], **change}
        try:
            seconds = cost(form)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            tried.append({**form, "seconds": None, "error": str(error)[:200]})
            continue
        tried.append({**form, "seconds": seconds})
        best = min(best, (seconds, form), key=lambda one: one[0])
        if seconds > hopeless:
            break
    return sorted(tried, key=lambda one: math.inf if one["seconds"] is None else one["seconds"])


@torch.no_grad()
def fastest_form(*, length: int, dtypes: list[str], quick: bool) -> dict[str, Any]:
    """Seconds of one prefill in the forms tried, the best of each dtype, and how far its fp32 logits are from ours."""
    import transformers

    fields = QUICK if quick else BENCHMARK
    ids = token_ids(fields["vocab_size"], length)
    tried: dict[str, list[dict[str, Any]]] = {}
    for dtype in dtypes:

        def cost(form: dict[str, Any], dtype: str = dtype) -> float:
            model = _theirs(fields, dtype, form["attention"], form["experts"]).eval()
            _read(model, ids[:, :WARMUP_LENGTH], form["use_cache"])
            return timed(lambda: _read(model, ids, form["use_cache"]))

        known = [some[0]["seconds"] for some in tried.values() if some[0]["seconds"] is not None]
        tried[dtype] = _fastest(PREFILL_CHOICES, cost, HOPELESS * min(known, default=math.inf))
    best = {dtype: found[0] for dtype, found in tried.items()}
    difference = _difference(fields, ids[:, :COMPARED_LENGTH], best["float32"])
    found = {"length": length, "best": best, "tried": tried, "logits_difference": difference}
    return {"transformers": transformers.__version__, **found}


def _difference(fields: Mapping[str, Any], ids: torch.Tensor, form: Mapping[str, Any]) -> float:
    """The largest difference between their logits and ours after the prompt, in standard deviations of the logits: the
    sides compute the same function, but for ties of index scores, which each breaks in its own way."""
    ours = build(fields)
    logits = ours.lm_head(prefill(ours, ids)[0].hidden[:, -1:])
    theirs = _read(_theirs(fields, "float32", form["attention"], form["experts"]).eval(), ids, form["use_cache"])
    return float((logits - theirs).abs().max() / logits.std())


@torch.no_grad()
def prefill_cost(
    *, length: int, dtype: str, attention: str, experts: str, use_cache: bool, quick: bool
) -> dict[str, Any]:
    """Reads a prompt up to the last token's logits."""
    fields = QUICK if quick else BENCHMARK
    model = _theirs(fields, dtype, attention, experts).eval()
    memory = PeakMemory()
    ids = token_ids(fields["vocab_size"], length)
    _read(model, ids[:, : min(length, WARMUP_LENGTH)], use_cache)
    seconds = best_of(lambda: _read(model, ids, use_cache))
    return {"length": length, "seconds": seconds, **memory.read()}


def pretraining_rate(*, recipe: str, rows: int | None, steps: int, warmup: int) -> dict[str, Any]:
    """Tokens per second of a plain loop (AdamW, clipping, cross-entropy alone) over rows of the recipe's pre-training,
    in the form that is fastest in a short trial: attention, experts, fp32 or bf16 autocast.

    The model is the recipe's dense one, DeepSeek-V3, as pre-training is dense; it has no second-token head.
    """
    loaded = load_recipe(recipe, [])
    section = loaded.pretrain
    fields = loaded.network().model_dump() | {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0}
    rows = rows or section.tokens_per_step // section.sequence_length
    tokens = rows * section.sequence_length
    batches = [token_ids(fields["vocab_size"], section.sequence_length, rows, i) for i in range(steps)]

    def seconds(form: Mapping[str, Any], count: int) -> list[float]:
        model = _theirs(fields, "float32", form["attention"], form["experts"]).train()
        step = _plain_step(model, form["autocast"], section.learning_rate)
        for batch in batches[:warmup]:
            step(batch)
        return [timed(lambda b=batch: step(b)) for batch in batches[:count]]  # type: ignore[misc]

    tried = _fastest(TRAINING_CHOICES, lambda form: min(seconds(form, TRIAL_STEPS)))
    rates = [tokens / one for one in seconds(tried[0], steps)]
    return {
        "rows": rows,
        "sequence_length": section.sequence_length,
        "rates": rates,
        "tokens_per_second": statistics.median(rates),
        "best": tried[0],
        "tried": tried,
    }


def _plain_step(model: Any, autocast: bool, learning_rate: float) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
