"""The small parts: a linear map that computes in a chosen dtype, RMSNorm, and the SwiGLU feed-forward.

Parameters keep their own dtype (fp32 while training). Products run in the compute dtype: bf16 matrix products are
several times faster than fp32 on a processor that has instructions for them and ten times slower on one that has not,
while the residual stream and the norms stay in the parameters' dtype.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def multiplies_natively(dtype: torch.dtype) -> bool:
    """Whether this machine's processor has instructions for matrix products in the dtype."""
    if dtype != torch.bfloat16 or torch.cuda.is_available():
        return True
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Cast:
    """A parameter seen in another dtype. Without gradient the cast is kept until the parameter changes."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self._kept: tuple[int, int, Tensor] | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        """The parameter in the compute dtype (its own when none is set)."""
        if self.dtype is None or parameter.dtype == self.dtype:
            return parameter
        if torch.is_grad_enabled() and parameter.requires_grad:
            return parameter.to(self.dtype)
        stamp = (parameter.data_ptr(), parameter._version)
        if self._kept is None or self._kept[:2] != stamp:
            self._kept = (*stamp, parameter.detach().to(self.dtype))
        return self._kept[2]


class Linear(nn.Module):
    """`y = W x`, plus a bias in the few models that have one. weight [out, in], bias [out] or None."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.cast = Cast()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the compute dtype."""
        weight = self.cast(self.weight)
        return F.linear(x.to(weight.dtype), weight, None if self.bias is None else self.bias.to(weight.dtype))


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in fp32, returned in the parameter's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(self.weight.dtype) * self.weight


class FeedForward(nn.Module):
    """`down(silu(gate x) * up x)`."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
