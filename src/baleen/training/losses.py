"""The losses of the text stages, from one forward.

Pre-training: cross-entropy plus the MTP head's, `L + lambda L_mtp` (DeepSeek-V3, 2.2). Indexer warm-up: the KL alone.
Sparse stage and fine-tuning: cross-entropy for the model and, on detached inputs, the KL over the selected set for the
indexer; the two sums share no gradient.
"""

# M = predictions

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baleen.model.attention import IndexerLoss
from baleen.model.network import Model, Output
from baleen.ops.logprobs import token_logprobs
from baleen.training.batch import Batch


@dataclass(frozen=True)
class Objective:
    """What a text stage minimises."""

    sparse: bool
    indexer_loss: IndexerLoss | None = None
    language_model: bool = True
    indexer_stride: int = 1
    """The KL is taken on every n-th query (a different n-th each step)."""

    mtp_weight: float = 0.0
    """Weight of the second-next token's loss on plain causal rows."""


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise, its parts, and each MoE layer's token count per expert."""

    total: Tensor
    figures: dict[str, float]
    loads: list[Tensor]


def batch_loss(model: Model, batch: Batch, objective: Objective, step: int = 0) -> Loss:
    """The weighted mean loss of a batch."""
    out = model(
        batch.tokens,
        position_ids=batch.position_ids,
        subtree_end=batch.subtree_end,
        sparse=objective.sparse,
        indexer_loss=objective.indexer_loss,
        indexer_stride=objective.indexer_stride,
        indexer_offset=step % objective.indexer_stride,
        logits=False,
    )
    figures: dict[str, float] = {}
    total = out.hidden.new_zeros(())
    if objective.language_model:
        loss = -_weighted_mean(logprobs(model, out.hidden, batch), batch.weight)
        figures["loss"] = float(loss.detach())
        if batch.kind:
            figures[f"{batch.kind}_loss"] = figures["loss"]
        total = total + loss
    if objective.mtp_weight and model.mtp is not None and batch.kind == "text":
        loss = _second_token_loss(model, out, batch)
        figures["mtp_loss"] = float(loss.detach())
        total = total + objective.mtp_weight * loss
    if out.indexer_kl:
        kl = torch.stack([layer.mean() for layer in out.indexer_kl])
        figures["kl"] = float(kl.detach().mean())
        total = total + kl.sum()
    return Loss(total, figures, expert_loads(model, out))


def logprobs(model: Model, hidden: Tensor, batch: Batch) -> Tensor:
    """[M] log-probabilities of the batch's predictions."""
    rows = hidden.flatten(0, 1).index_select(0, batch.source)
    head = model.lm_head.cast(model.lm_head.weight)
    return token_logprobs(rows.to(head.dtype), head, batch.target)


def expert_loads(model: Model, out: Output) -> list[Tensor]:
    """[E] tokens per expert, for each MoE layer."""
    return [torch.bincount(chosen.flatten(), minlength=model.config.n_routed_experts) for chosen in out.experts]


def _second_token_loss(model: Model, out: Output, batch: Batch) -> Tensor:
    tokens = batch.tokens
    context = model.context((tokens.shape[0], tokens.shape[1] - 2), sparse=False)
    hidden, _ = model.predict_second(out.hidden[:, :-2], tokens[:, 1:-1], context)
    head = model.lm_head.cast(model.lm_head.weight)
    return -token_logprobs(hidden.flatten(0, 1).to(head.dtype), head, tokens[:, 2:].flatten()).mean()


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)
