"""What is measured of our own model. Every function runs in a process of its own and returns plain numbers."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from baleen.benchmarks.clock import PeakMemory, best_of
from baleen.benchmarks.networks import BENCHMARK, DTYPES, QUICK, build, token_ids
from baleen.model.cache import CacheView, LatentCache
from baleen.model.layers import multiplies_natively
from baleen.model.network import Model
from baleen.model.prefill import prefill
from baleen.pipeline.loading import load_recipe
from baleen.training.batch import text_batch
from baleen.training.loop import Schedule, train
from baleen.training.losses import Objective, batch_loss
from baleen.training.machine import prepare_machine

WARMUP_LENGTH = 256
DECODE_WARMUP = 8


def machine(*, side: int) -> dict[str, Any]:
    """Torch's version and threads, whether bf16 is native, and the rate of a [side, side] product in both dtypes."""
    rates = {}
    for name, dtype in DTYPES.items():
        left, right = (torch.randn(side, side, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
        F.linear(left[:64], right)
        seconds = best_of(lambda a=left, b=right: F.linear(a, b))  # type: ignore[misc]
        rates[name] = {"seconds": seconds, "operations_per_second": 2 * side**3 / min(seconds)}
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native_bfloat16": multiplies_natively(torch.bfloat16),
        "side": side,
        "products": rates,
    }


@torch.no_grad()
def prefill_cost(
    *,
    length: int,
    form: str,
    dtype: str,
    compute: str,
    quick: bool,
    layers: int | None = None,
    shared: bool = False,
) -> dict[str, Any]:
    """Reads a prompt up to the last token's logits. form: `sparse`, `dense` (both by chunks), `dense_whole`."""
    fields = (QUICK if quick else BENCHMARK) | ({"num_hidden_layers": layers} if layers else {})
    model = build(fields, dtype=dtype, compute=compute, shared=shared)
    memory = PeakMemory()
    ids = token_ids(model.config.vocab_size, length)
    _read(model, ids[:, : min(length, WARMUP_LENGTH)], form)
    seconds = best_of(lambda: _read(model, ids, form))
    return {"length": length, "seconds": seconds, **memory.read()}


def _read(model: Model, ids: torch.Tensor, form: str) -> torch.Tensor:
    if form == "dense_whole":
        out = model(ids, sparse=False, logits=False)
    else:
        out, _ = prefill(model, ids, sparse=form == "sparse")
    logits: torch.Tensor = model.lm_head(out.hidden[:, -1:]).float()
    return logits


@torch.no_grad()
def decode_cost(*, lengths: list[int], tokens: int, dtype: str, compute: str, quick: bool) -> dict[str, Any]:
    """Median seconds of a cached step at batch 1, per length. The cache is filled with random rows, not by a prefill:
    the cost of a step depends on how many rows there are, not on what they hold."""
    model = build(QUICK if quick else BENCHMARK, dtype=dtype, compute=compute)
    result: dict[str, Any] = {"tokens": tokens, "seconds": {}}
    ids = token_ids(model.config.vocab_size, tokens + DECODE_WARMUP)
    for length in lengths:
        cache = LatentCache(model.config, 1, length + ids.shape[1], model.compute_dtype)
        generator = torch.Generator().manual_seed(length)
        for layer in cache.layers:
            layer.rows.normal_(generator=generator)
            layer.index_k.normal_(generator=generator)
        seconds = []
        for step in range(ids.shape[1]):
            began = time.perf_counter()
            place = length + step
            view = CacheView.plain(cache, [0], place, place + 1)
            model.lm_head(model(ids[:, step : step + 1], cache=view, logits=False).hidden[:, -1:])
            seconds.append(time.perf_counter() - began)
        result["seconds"][str(length)] = seconds[DECODE_WARMUP:]
    return result


def training_cost(*, length: int, sparse: bool, compute: str, quick: bool) -> dict[str, Any]:
    """One row's forward and backward with fp32 parameters: the cross-entropy, and with `sparse` the indexer's KL over
    the selected set on every query."""
    prepare_machine()
    model = build(QUICK if quick else BENCHMARK, compute=compute)
    objective = Objective(sparse=sparse, indexer_loss="selected" if sparse else None)
    memory = PeakMemory()
    ids = token_ids(model.config.vocab_size, length)

    def step(count: int) -> None:
        batch_loss(model, text_batch(ids[:, :count].numpy()), objective).total.backward()
        model.zero_grad()

    step(min(length, 2 * WARMUP_LENGTH))
    seconds = best_of(lambda: step(length))
    return {"length": length, "seconds": seconds, **memory.read()}


def pretraining_rate(
    *, recipe: str, rows: int | None, steps: int, warmup: int, compute: str, second_token: bool
) -> dict[str, Any]:
    """Tokens per second of each step of `training.loop.train` on text rows of the recipe's pre-training: optimiser,
    clipping, expert balancing and, with `second_token`, the recipe's second-token loss included."""
    loaded = load_recipe(recipe, [])
    section = loaded.pretrain
    prepare_machine()
    model = build(loaded.network().model_dump(), compute=compute)
    rows = rows or section.tokens_per_step // section.sequence_length
    vocabulary = model.config.vocab_size

    class Silent:
        def update(self, done: float, total: float, **figures: float) -> None:
            """Says nothing."""

    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            lambda step: [text_batch(token_ids(vocabulary, section.sequence_length, rows, step).numpy())],
            Objective(sparse=False, mtp_weight=section.mtp_weight if second_token else 0.0),
            Schedule(warmup + steps, section.learning_rate, checkpoint_every=warmup + steps),
            Path(folder),
            Silent(),
        )
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["tokens_per_second"] for line in lines][warmup:]
    return {
        "rows": rows,
        "sequence_length": section.sequence_length,
        "rates": rates,
        "tokens_per_second": statistics.median(rates),
    }
