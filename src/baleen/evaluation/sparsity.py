"""Does the sparse form stand in for the dense one? Loss, attention mass, and needles.

Attention mass: the share of the true (dense, head-summed) attention that a selection of k positions holds, over queries
that see more than k. The oracle selects the k heaviest positions, which nothing of that size can beat; most-recent-k
and a random choice are the floor. Needle: a value is named once in a long text and asked for at its end.
"""

# B = rows, S = tokens, K = index_topk

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baleen.chat.tokenizer import Tokenizer
from baleen.model.network import Model
from baleen.ops.selection import select_topk
from baleen.training.batch import text_batch
from baleen.training.losses import logprobs
from baleen.training.needles import make_needle, plant
from baleen.training.records import write_json_atomic

ROWS_PER_FORWARD = 8
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEEDLES_PER_DEPTH = 16


def measure_sparsity(
    model: Model, rows: np.ndarray, tokenizer: Tokenizer, *, selection_file: Path | None = None
) -> dict[str, Any]:
    """The report's figures on held-out rows [B, S]; with a folder, `selection.json` of one row is left there."""
    result: dict[str, Any] = {
        "validation_loss": {
            "dense": text_loss(model, rows, sparse=False),
            "sparse": text_loss(model, rows, sparse=True),
        },
        "attention_mass": attention_mass(model, torch.from_numpy(rows[:4].astype(np.int64))),
        "needle": needles(model, rows, tokenizer),
        "index_topk": model.config.index_topk,
        "sequence_length": rows.shape[1],
    }
    if selection_file is not None:
        write_json_atomic(selection_file / "selection.json", selection_of(model, rows[0], tokenizer))
    return result


@torch.no_grad()
def text_loss(model: Model, rows: np.ndarray, *, sparse: bool) -> float:
    """Mean cross-entropy of the next token, nats."""
    total, count = 0.0, 0
    for start in range(0, len(rows), ROWS_PER_FORWARD):
        batch = text_batch(rows[start : start + ROWS_PER_FORWARD])
        out = model(batch.tokens, sparse=sparse, logits=False)
        total -= float(logprobs(model, out.hidden, batch).double().sum())
        count += len(batch.target)
    return total / count


@torch.no_grad()
def attention_mass(model: Model, tokens: Tensor) -> dict[str, Any]:
    """The mass held by the indexer's selection, the oracle's, the most recent and a random one, over all layers."""
    probe: list[tuple[Tensor, Tensor | None, Tensor]] = []
    model(tokens, sparse=False, probe=probe, logits=False)
    topk, length = model.config.index_topk, tokens.shape[1]
    if length <= topk:
        raise ValueError(f"rows of {length} tokens select everything at index_topk {topk}: measure on longer rows")
    noise = torch.rand(length, length, generator=torch.Generator().manual_seed(0))
    recent = torch.arange(length, dtype=torch.float32).expand(length, length)
    by_layer = []
    for probabilities, scores, visible in probe:
        assert scores is not None
        choices = {"selected": scores, "oracle": probabilities, "recent": recent, "random": noise}
        seen = visible.expand_as(probabilities)
        layer = {}
        for name, choice in choices.items():
            chosen = select_topk(choice.expand_as(probabilities).contiguous(), seen, topk)
            held = probabilities.gather(-1, chosen.clamp(min=0)).masked_fill(chosen < 0, 0.0).sum(-1)
            layer[name] = float(held[:, topk:].mean())  # queries that see more than k
        by_layer.append(layer)
    mean = {name: sum(layer[name] for layer in by_layer) / len(by_layer) for name in by_layer[0]}
    return {**mean, "by_layer": by_layer}


@torch.no_grad()
def needles(model: Model, rows: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, float]]:
    """Accuracy by depth of copying a named three-digit value over a long text, dense and sparse."""
    rng = random.Random("held out")
    head = model.lm_head.cast(model.lm_head.weight)
    results = []
    for depth in DEPTHS:
        right = {"dense": 0, "sparse": 0}
        for trial in range(NEEDLES_PER_DEPTH):
            needle = make_needle(tokenizer, rng)
            ids, answer = plant(rows[trial % len(rows)].tolist(), needle, depth), needle.answer
            for kind in right:
                out = model(torch.tensor([ids]), sparse=kind == "sparse", logits=False)
                hidden = out.hidden[0, -len(answer) - 1 : -1].to(head.dtype)
                best = (hidden @ head.T).argmax(-1).tolist()
                right[kind] += best == answer
        results.append({"depth": depth, "n": NEEDLES_PER_DEPTH, **{k: v / NEEDLES_PER_DEPTH for k, v in right.items()}})
    return results


@torch.no_grad()
def selection_of(model: Model, row: np.ndarray, tokenizer: Tokenizer, *, every: int = 4) -> dict[str, Any]:
    """What one long row selects, layer by layer, for every `every`-th query."""
    out = model(torch.from_numpy(row.astype(np.int64)).unsqueeze(0), sparse=True, logits=False)
    queries = list(range(0, len(row), every))
    layers = []
    for index, selected in enumerate(out.selected):
        if selected is not None:
            chosen = [sorted(p for p in selected[0, query].tolist() if p >= 0) for query in queries]
            layers.append({"layer": index, "queries": queries, "selected": chosen})
    tokens = [tokenizer.decode([int(token)]) for token in row]
    return {"tokens": tokens, "layers": layers, "index_topk": model.config.index_topk}
