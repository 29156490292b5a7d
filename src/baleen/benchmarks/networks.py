"""The networks that are measured: the benchmark's own, a tiny one that tries everything out, and variants of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from baleen.model.config import ModelConfig
from baleen.model.network import Model

BENCHMARK: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 512,
    "max_position_embeddings": 163840,
}
"""The configuration of every published number of this project's."""

QUICK: dict[str, Any] = BENCHMARK | {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 32,
}
"""The same with every width cut: for trying the benchmark itself, not for its numbers."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARING = 4
"""Layers that share one selection in the variant with shared selections."""


def build(
    fields: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: str = "float32",
    compute: str | None = None,
    shared: bool = False,
) -> Model:
    """A fresh network with parameters in `dtype` and matrix products in `compute` (None: the parameters' own)."""
    if shared:
        kinds = tuple("shared" if layer % SHARING else "full" for layer in range(fields["num_hidden_layers"]))
        fields = {**fields, "indexer_types": kinds}
    model = Model(ModelConfig(**fields))
    model.initialise(seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    return model.set_compute_dtype(None if compute is None or compute == dtype else DTYPES[compute])


def token_ids(vocabulary: int, length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids [rows, length], the same for every network that is compared."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
