"""Routing and the experts' computation.

Gate (`noaux_tc`): sigmoid scores; groups ranked by the sum of their two best biased scores, `topk_group` groups kept,
then the best experts by biased score; the mixing weights are the unbiased scores, normalised, times
`routed_scaling_factor`. DeepSeek-V2 has softmax scores without a bias, and its groups are ranked by their best expert
(`group_limited_greedy`) or there are none (`greedy`). Ties go to the lower expert index, as everywhere. The experts run
on tokens sorted by expert: one product per expert.
"""

# A = tokens, E = experts, G = groups, K = experts per token, D = hidden, F = expert width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baleen.ops.invariance import row_padding


def route(
    scores: Tensor, bias: Tensor | None, *, n_group: int, topk_group: int, topk: int, method: str = "noaux_tc"
) -> Tensor:
    """The experts [A, K] (int64) of each token from its scores [A, E] in fp32 and the balancing bias [E]."""
    choice = scores if bias is None else scores + bias
    if topk_group < n_group and method != "greedy":
        grouped = choice.view(choice.shape[0], n_group, -1)
        counted = min(2, grouped.shape[-1]) if method == "noaux_tc" else 1
        group_scores = grouped.topk(counted, dim=-1).values.sum(-1)
        kept = group_scores.sort(dim=-1, descending=True, stable=True).indices[:, :topk_group]
        allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, kept, True)
        choice = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
    return choice.sort(dim=-1, descending=True, stable=True).indices[:, :topk]


def mixing_weights(scores: Tensor, experts: Tensor, *, normalise: bool, scaling: float) -> Tensor:
    """The weights [A, K] of the chosen experts; differentiable in the scores."""
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * scaling


def run_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, padded: bool = False
) -> Tensor:
    """`sum_k weights[a,k] down_e(silu(gate_e(x_a)) * up_e(x_a))`, [A, D].

    x [A, D], experts [A, K], weights [A, K], gate_up [E, 2F, D], down [E, D, F]. `padded` gives every product so many
    rows that a token's bits do not depend on how many share its expert.
    """
    tokens, topk = experts.shape
    flat = experts.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    inputs = x.index_select(0, order // topk).split(counts)
    shares = weights.reshape(-1, 1).index_select(0, order).to(x.dtype).split(counts)
    outputs = []
    for expert, (part, share) in enumerate(zip(inputs, shares, strict=True)):
        if rows := part.shape[0]:
            if missing := row_padding(rows) if padded else 0:
                part, share = F.pad(part, (0, 0, 0, missing)), F.pad(share, (0, 0, 0, missing))
            gate, up = F.linear(part, gate_up[expert]).chunk(2, dim=-1)
            # Weighed before the last product, where the rows are narrow: half of what backward would have to keep.
            outputs.append(F.linear(F.silu(gate) * up * share, down[expert])[:rows])
    joined = torch.cat(outputs)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return joined.index_select(0, inverse).view(tokens, topk, -1).sum(dim=1)
