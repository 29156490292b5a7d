"""A network small enough for any test, with every mechanism on: groups of experts, YaRN, ties that are rare."""

from __future__ import annotations

import torch

from baleen.model.config import ModelConfig
from baleen.model.network import Model

TINY = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}


def tiny_model(seed: int = 0, **changes: object) -> Model:
    """A fresh tiny network whose gates and indexer norms are not at their neutral start."""
    model = Model(ModelConfig(**(TINY | changes)))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("e_score_correction_bias", "k_norm.bias")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model
