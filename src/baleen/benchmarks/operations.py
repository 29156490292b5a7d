"""Multiplications and additions of a prefill, counted from the shapes: what has to be done, not what a form wastes.

Two operations per weight and token in the projections and chosen experts, per pair and index dimension in the index,
and per pair and head dimension in attention. A selected pair costs the widths of the absorbed form (the one that
fetches rows: latent + rope + latent); a pair of dense attention those of the expanded form (key + value). `strict`
counts selected pairs at the expanded widths too, the least that any form needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baleen.model.config import ModelConfig


def prefill_operations(fields: Mapping[str, Any], length: int, *, sparse: bool, strict: bool = False) -> float:
    """Operations of reading `length` tokens up to the last one's logits."""
    config = ModelConfig(**fields)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    expanded = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    fetched = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    pairs = length * (length + 1) // 2
    kept = min(length, config.index_topk)
    selected = kept * (kept + 1) // 2 + (length - kept) * config.index_topk
    weights = length * _weights_of_a_token(config, sparse) + config.hidden_size * config.vocab_size
    if not sparse or length <= config.index_topk:
        return 2.0 * (weights + layers * pairs * heads * expanded)
    index = layers * pairs * config.index_n_heads * config.index_head_dim
    attention = layers * selected * heads * (expanded if strict else fetched)
    return 2.0 * (weights + index + attention)


def _weights_of_a_token(config: ModelConfig, sparse: bool) -> int:
    """Weights that one token meets in all layers, embedding and head left out."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    key_width = config.qk_nope_head_dim + config.qk_rope_head_dim
    latent = config.q_lora_rank or hidden
    query = (hidden * latent if config.q_lora_rank else 0) + latent * heads * key_width
    row = hidden * (config.kv_lora_rank + config.qk_rope_head_dim)
    expansion = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    attention = query + row + expansion + heads * config.v_head_dim * hidden
    if sparse:
        attention += latent * config.index_n_heads * config.index_head_dim
        attention += hidden * (config.index_head_dim + config.index_n_heads)
    expert = 3 * hidden * config.moe_intermediate_size
    moe = expert * (config.num_experts_per_tok + config.n_shared_experts) + hidden * config.n_routed_experts
    dense = 3 * hidden * config.intermediate_size
    moe_layers = len(config.moe_layers)
    return config.num_hidden_layers * attention + moe_layers * moe + (config.num_hidden_layers - moe_layers) * dense
