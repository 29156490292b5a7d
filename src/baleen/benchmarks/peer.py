"""The same measurements of `transformers`: its DeepSeek-V3.2 reads prompts, its DeepSeek-V3 is pre-trained.

The weights are ours, saved and loaded there. Every choice that a user of `transformers` has (attention, experts, dtype)
is tried, and the fastest stands for it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baleen.benchmarks.clock import PeakMemory, best_of, timed
from baleen.benchmarks.networks import BENCHMARK, DTYPES, QUICK, build, token_ids
from baleen.benchmarks.ours import WARMUP_LENGTH
from baleen.model.checkpoint import save_model
from baleen.pipeline.loading import load_recipe

ATTENTIONS = ("sdpa", "eager")
EXPERTS = ("grouped_mm", "eager")
"""`batched_mm` copies an expert's weights for every token: several times slower here, and gigabytes at 1K tokens."""

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


def _read(model: Any, ids: torch.Tensor, use_cache: bool) -> None:
    model(input_ids=ids, use_cache=use_cache, logits_to_keep=1)


@torch.no_grad()
def fastest_form(*, length: int, quick: bool) -> dict[str, Any]:
    """Seconds of one prefill for every combination of dtype, attention, experts and cache; the best of each dtype."""
    import transformers

    fields = QUICK if quick else BENCHMARK
    ids = token_ids(fields["vocab_size"], length)
    tried: dict[str, list[dict[str, Any]]] = {name: [] for name in DTYPES}
    for dtype, found in tried.items():
        for attention in ATTENTIONS:
            for experts in EXPERTS:
                known = min((one["seconds"] for some in tried.values() for one in some), default=float("inf"))
                if found and min(one["seconds"] for one in found) > HOPELESS * known:
                    continue
                form = {"attention": attention, "experts": experts}
                try:
                    model = _theirs(fields, dtype, attention, experts).eval()
                    for use_cache in (False, True):
                        _read(model, ids[:, : min(length, WARMUP_LENGTH)], use_cache)
                        seconds = timed(lambda m=model, c=use_cache: _read(m, ids, c))  # type: ignore[misc]
                        found.append({**form, "use_cache": use_cache, "seconds": seconds})
                except (RuntimeError, NotImplementedError, ValueError) as error:
                    found.append({**form, "use_cache": False, "seconds": float("inf"), "error": str(error)[:200]})
    best = {dtype: min(found, key=lambda one: one["seconds"]) for dtype, found in tried.items()}
    for one in (one for found in tried.values() for one in found):
        one["seconds"] = None if one["seconds"] == float("inf") else one["seconds"]
    return {"transformers": transformers.__version__, "length": length, "best": best, "tried": tried}


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
    in fp32 and under bf16 autocast, with each experts' form; the fastest in a short trial is measured.

    The model is the recipe's dense one, DeepSeek-V3, as pre-training is dense; it has no second-token head.
    """
    loaded = load_recipe(recipe, [])
    section = loaded.pretrain
    fields = loaded.network().model_dump() | {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0}
    rows = rows or section.tokens_per_step // section.sequence_length
    tokens = rows * section.sequence_length
    batches = [token_ids(fields["vocab_size"], section.sequence_length, rows, i) for i in range(steps)]

    def rates(experts: str, autocast: bool, count: int) -> list[float]:
        step = _plain_step(_theirs(fields, "float32", "sdpa", experts).train(), autocast, section.learning_rate)
        for batch in batches[:warmup]:
            step(batch)
        return [tokens / timed(lambda b=batch: step(b)) for batch in batches[:count]]  # type: ignore[misc]

    forms: list[dict[str, Any]] = []
    for experts in EXPERTS:
        for autocast in (False, True):
            form: dict[str, Any] = {"experts": experts, "autocast": autocast}
            try:
                forms.append(form | {"trial": max(rates(experts, autocast, TRIAL_STEPS))})
            except (RuntimeError, NotImplementedError, ValueError) as error:
                forms.append(form | {"trial": 0.0, "error": str(error)[:200]})
    best = max(forms, key=lambda form: form["trial"])
    measured = rates(best["experts"], best["autocast"], steps)
    return {"tokens_per_second": statistics.median(measured), "rates": measured, "best": best, "forms": forms}


def _plain_step(model: Any, autocast: bool, learning_rate: float) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
