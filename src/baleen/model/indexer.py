"""The lightning indexer: a few small heads whose scores decide which tokens the attention sees (report, section 2.1).

Its key is a true LayerNorm; its rope dims come FIRST and rotate half-split (interleaved in GLM-5), unlike MLA's.
"""

# B = batch, S = tokens, D = hidden, H = index heads, D_i = index head dim

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baleen.model.config import ModelConfig
from baleen.model.layers import Linear
from baleen.model.rotary import rotate_half_split, rotate_interleaved


class Indexer(nn.Module):
    """Makes the queries, keys and weights that `ops/selection.py` scores."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dims, self.rope = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank or config.hidden_size, self.heads * self.dims)
        self.wk = Linear(config.hidden_size, self.dims)
        self.k_norm = nn.LayerNorm(self.dims, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)
        self.rotate = rotate_interleaved if config.indexer_rope_interleave else rotate_half_split

    def forward(self, x: Tensor, q_latent: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D], q_latent [B, S, q_lora] -> q [B, S, H, D_i], k [B, S, D_i], weights [B, S, H] with their
        scales."""
        q = self.wq_b(q_latent).unflatten(-1, (self.heads, self.dims))
        norm = self.k_norm
        k = F.layer_norm(self.wk(x).float(), (self.dims,), norm.weight.float(), norm.bias.float(), norm.eps).to(q.dtype)
        weights = F.linear(x.float(), self.weights_proj.weight.float()) * (self.heads**-0.5 * self.dims**-0.5)
        return self._rotated(q, cos, sin), self._rotated(k.unsqueeze(2), cos, sin).squeeze(2), weights

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.cat((self.rotate(x[..., : self.rope], cos, sin), x[..., self.rope :]), dim=-1)
