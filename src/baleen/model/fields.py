"""Which fields of `config.json` decide a published tensor: its shape, and whether a model has it at all.

For errors only: a config that contradicts the weights is found as a wrong shape or a tensor too many or too few, and
the reader should be told where to look.
"""

from __future__ import annotations

import re

from baleen.model.config import ModelConfig
from baleen.model.names import second_prediction

_ATTENTION = ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim")

_SHAPE = (
    (r"embed_tokens|lm_head|shared_head\.head", ("vocab_size", "hidden_size")),
    (r"mlp\.gate\.", ("n_routed_experts", "hidden_size")),
    (r"mlp\.experts\.", ("moe_intermediate_size", "hidden_size")),
    (r"mlp\.shared_experts\.", ("moe_intermediate_size", "n_shared_experts", "hidden_size")),
    (r"mlp\.", ("intermediate_size", "hidden_size")),
    (r"indexer\.wq_b", ("index_n_heads", "index_head_dim", "q_lora_rank")),
    (r"indexer\.wk", ("index_head_dim", "hidden_size")),
    (r"indexer\.k_norm", ("index_head_dim",)),
    (r"indexer\.weights_proj", ("index_n_heads", "hidden_size")),
    (r"\.q_proj", (*_ATTENTION, "hidden_size")),
    (r"\.q_a_", ("q_lora_rank", "hidden_size")),
    (r"\.q_b_proj", (*_ATTENTION, "q_lora_rank")),
    (r"\.kv_a_", ("kv_lora_rank", "qk_rope_head_dim", "hidden_size")),
    (r"\.kv_b_proj", ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank")),
    (r"\.o_proj", ("num_attention_heads", "v_head_dim", "hidden_size")),
    (r"", ("hidden_size",)),
)
"""The first pattern found in the name tells."""

_EXISTENCE = (
    (r"^lm_head", ("tie_word_embeddings",)),
    (r"\.(eh_proj|enorm|hnorm|shared_head)\.", ("num_nextn_predict_layers",)),
    (r"mlp\.experts\.", ("n_routed_experts",)),
    (r"mlp\.shared_experts\.", ("n_shared_experts",)),
    (r"mlp\.gate\.e_score_correction_bias", ("topk_method",)),
    (r"mlp\.", ("first_k_dense_replace", "mlp_layer_types")),
    (r"indexer\.", ("model_type", "indexer_types")),
    (r"_proj(_with_mqa)?\.bias", ("attention_bias",)),
    (r"\.q_(proj|a_proj|b_proj|a_layernorm)\.", ("q_lora_rank",)),
    (r"^model\.layers\.", ("num_hidden_layers",)),
)
"""All patterns found in the name tell."""


def shape_fields(name: str) -> tuple[str, ...]:
    """The fields that the shape of a tensor follows from."""
    return next(fields for pattern, fields in _SHAPE if re.search(pattern, name))


def existence_fields(name: str, config: ModelConfig) -> tuple[str, ...]:
    """The fields that decide whether a model has the tensor; none for those that every model has."""
    fields = [field for pattern, fields in _EXISTENCE if re.search(pattern, name) for field in fields]
    if name.startswith(second_prediction(config)):
        fields.append("num_nextn_predict_layers")
    return tuple(dict.fromkeys(fields))
