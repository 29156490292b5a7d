"""Mixture of experts with auxiliary-loss-free balancing.

The gate's `e_score_correction_bias` only decides who is chosen; it is not learned by gradient: `training/` moves it
up for experts that got too few tokens and down for those that got too many (DeepSeek-V3, section 2.1.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baleen.model.config import ModelConfig
from baleen.model.layers import Cast, FeedForward
from baleen.ops.experts import mixing_weights, route, run_experts


class Gate(nn.Module):
    """The router: weight [E, D], bias [E] (a buffer, in the families that balance by it); always computed in fp32."""

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        balanced = config.topk_method == "noaux_tc"
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32) if balanced else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor, replay: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [A, D], replay [A, K] (-1 rows choose freely) -> experts [A, K], weights [A, K]."""
        config = self.config
        logits = nn.functional.linear(x.float(), self.weight.float())
        scores = torch.sigmoid(logits) if config.scoring_func == "sigmoid" else torch.softmax(logits, dim=-1)
        with torch.no_grad():
            experts = route(
                scores,
                self.e_score_correction_bias,
                method=config.topk_method,
                n_group=config.n_group,
                topk_group=config.topk_group,
                topk=config.num_experts_per_tok,
            )
            if replay is not None:
                experts = torch.where(replay >= 0, replay.to(experts.dtype), experts)
        weights = mixing_weights(scores, experts, normalise=config.norm_topk_prob, scaling=config.routed_scaling_factor)
        return experts, weights


class Experts(nn.Module):
    """All routed experts' weights: gate_up_proj [E, 2F, D], down_proj [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.cast_gate_up, self.cast_down = Cast(), Cast()

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor, *, padded: bool = False) -> Tensor:
        """x [A, D], experts [A, K], weights [A, K] -> [A, D]."""
        gate_up = self.cast_gate_up(self.gate_up_proj)
        down = self.cast_down(self.down_proj)
        return run_experts(x.to(gate_up.dtype), experts, weights, gate_up, down, padded=padded)


class MoE(nn.Module):
    """Routed experts plus the shared ones that every token visits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        width = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = FeedForward(config.hidden_size, width) if width else None

    def forward(self, x: Tensor, replay: Tensor | None, *, padded: bool = False) -> tuple[Tensor, Tensor]:
        """x [B, S, D], replay [B, S, K] -> output [B, S, D], experts [B, S, K]; `padded` as in `run_experts`."""
        flat = x.reshape(-1, x.shape[-1])
        experts, weights = self.gate(flat, None if replay is None else replay.reshape(flat.shape[0], -1))
        routed = self.experts(flat, experts, weights, padded=padded).view(x.shape)
        if self.shared_experts is not None:
            routed = routed + self.shared_experts(x)
        return routed, experts.view(*x.shape[:-1], -1)
