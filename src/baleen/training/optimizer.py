"""Muon for matrices, AdamW for the rest, behind one `step`.

Muon orthogonalises each matrix's momentum with a Newton-Schulz iteration (Jordan et al. 2024), so that all directions
of a weight move at one speed. Stacked experts
[E, out, in] are E matrices, which `torch.optim.Muon` does not take, hence this form. Embeddings, the head, the router
and vectors take AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; they trade exact orthogonality for speed."""

NOT_MATRICES = ("embed_tokens", "lm_head", "gate.weight", "weights_proj")


class Optimizer:
    """Both optimisers over a model's trainable parameters, at one learning rate; vectors (the norms' gains) move at
    `gain_ratio` times it.

    Without `muon` AdamW takes every parameter. Policy gradients want that: they are mostly noise, which Muon, giving
    every direction the same speed, turns into full-sized steps, while AdamW's average of it stays small.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        momentum: float = 0.95,
        muon: bool = True,
        gain_ratio: float = 1.0,
        weight_decay: float = 0.01,
    ) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.matrices = [
            p for name, p in named if muon and p.dim() >= 2 and not any(part in name for part in NOT_MATRICES)
        ]
        chosen = {id(parameter) for parameter in self.matrices}
        rest = [parameter for _, parameter in named if id(parameter) not in chosen]
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers = [torch.zeros_like(matrix) for matrix in self.matrices]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "ratio": 1.0},
            {"params": [p for p in rest if p.dim() < 2], "ratio": gain_ratio},
        ]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-10, weight_decay=weight_decay)
        self.parameters = [*self.matrices, *rest]

    @torch.no_grad()
    def step(self, learning_rate: float, *, max_norm: float = 1.0) -> float:
        """One update from the gradients, clipped to `max_norm` in all; returns the norm before. Clears the
        gradients."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, max_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}: lower the learning rate or train in float32")
        for matrix, buffer in zip(self.matrices, self.buffers, strict=True):
            if matrix.grad is None:
                continue
            buffer.lerp_(matrix.grad, 1 - self.momentum)
            update = orthogonalise(matrix.grad.lerp(buffer, self.momentum))
            matrix.mul_(1 - learning_rate * self.weight_decay)
            # 0.2 sqrt(longer side) gives the update the size of AdamW's, so that one learning rate fits both.
            matrix.add_(update, alpha=-learning_rate * 0.2 * math.sqrt(max(matrix.shape[-2:])))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on to the same bits."""
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for buffer, value in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(value)
        self.adam.load_state_dict(state["adam"])


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix of [..., out, in], roughly: singular values between 0.7 and 1.2.

    bf16 is precise enough, but only accelerators are sure to be fast in it: a CPU without bf16 instructions is 30 times
    slower than in fp32.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.float() if matrix.device.type == "cpu" else matrix.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def schedule(step: int, steps: int, peak: float, *, warmup: int, decay: float = 0.3, floor: float = 0.05) -> float:
    """Linear warm-up, flat, then linear decay over the last `decay` share of the steps down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / max(1.0, decay * steps)
    return peak * max(floor, min(1.0, left))
