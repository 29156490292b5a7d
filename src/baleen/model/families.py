"""The checkpoint families that one network covers: what each `config.json` leaves unsaid, and what it must not say.

All are MLA with experts. `deepseek_v2` routes by softmax scores and may have no query latent; `deepseek_v3` (V3, V3.1,
R1, Moonlight, and Kimi K2 as `kimi_k2`) and `glm4_moe_lite` route by biased sigmoid scores; `deepseek_v32` adds the
lightning indexer; `glm_moe_dsa` rotates the indexer's dims in neighbouring pairs and lets layers share a selection.
Defaults are those of `transformers`, which leaves out of a file what equals them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A field of `config.json` has a value with which the network would be computed wrongly."""


@dataclass(frozen=True)
class Family:
    """A model type: the class that `transformers` loads it with, and its own defaults."""

    architecture: str
    sparse: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_V3 = {
    **{"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048},
    **{"num_hidden_layers": 61, "num_attention_heads": 128, "first_k_dense_replace": 3, "n_routed_experts": 256},
    **{"q_lora_rank": 1536, "max_position_embeddings": 4096, "num_nextn_predict_layers": 0},
}
_GLM = {
    **{"vocab_size": 154880, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 202752},
    **{"qk_nope_head_dim": 192, "v_head_dim": 256, "num_nextn_predict_layers": 0},
}

FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        defaults={
            **{"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "moe_intermediate_size": 1407},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "first_k_dense_replace": 0},
            **{"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1},
            **{"routed_scaling_factor": 1.0, "norm_topk_prob": False, "topk_method": "greedy"},
            **{"scoring_func": "softmax", "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
            "num_nextn_predict_layers": 0,
        },
    ),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", defaults=_V3),
    "kimi_k2": Family("DeepseekV3ForCausalLM", defaults=_V3),
    "glm4_moe_lite": Family(
        "Glm4MoeLiteForCausalLM",
        defaults={
            **_GLM,
            **{"hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536, "q_lora_rank": 768},
            **{"num_hidden_layers": 47, "num_attention_heads": 20, "first_k_dense_replace": 1, "n_routed_experts": 64},
            **{"num_experts_per_tok": 4, "routed_scaling_factor": 1.8},
        },
    ),
    "deepseek_v32": Family("DeepseekV32ForCausalLM", sparse=True, defaults={"num_nextn_predict_layers": 0}),
    "glm_moe_dsa": Family(
        "GlmMoeDsaForCausalLM",
        sparse=True,
        defaults={
            **_GLM,
            **{"hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78, "num_attention_heads": 64},
            **{"q_lora_rank": 2048, "index_n_heads": 32, "indexer_rope_interleave": True},
        },
    ),
}
"""By `model_type`."""

_ONLY = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid", "softmax"),
    "topk_method": ("noaux_tc", "greedy", "group_limited_greedy"),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
}
"""Fields of which other values exist elsewhere and are not computed here."""

_ONLY_IN = {
    # The model's own code normalises instead of scaling, others scale without normalising, and no file says true.
    "deepseek_v2": {"norm_topk_prob": (False,), "rope_interleave": (True,)},
    "deepseek_v32": {"rope_interleave": (True,)},
    "glm_moe_dsa": {"rope_interleave": (True,)},
}
"""The same, for the families in which the field is not read elsewhere, so that nobody could say what is meant."""

_NULL = {
    **dict.fromkeys(("q_lora_rank", "bos_token_id", "eos_token_id", "pad_token_id")),
    **dict.fromkeys(("norm_topk_prob", "rope_interleave"), False),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "n_shared_experts": 0,
}
"""What a null means that is not "the default"."""

MECHANISMS = ("scoring_func", "topk_method", "norm_topk_prob", "indexer_rope_interleave")
"""Fields that say how a family computes rather than how large a model is: its defaults hold wherever it is named."""

ROPE_TYPES = ("default", "yarn")

_ABOVE_ZERO = ("factor", "original_max_position_embeddings", "attention_factor")
_ZERO_OR_MORE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""The numbers of YaRN."""


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` of a known `model_type` under `ModelConfig`'s names, defaults filled in.

    Raises `ConfigError` for a value with which the network would be computed wrongly.
    """
    given = {name: _NULL.get(name) if value is None else value for name, value in fields.items()}
    given = {name: value for name, value in given.items() if value is not None or name in _NULL}
    kind = fields["model_type"]
    for name, known in (_ONLY | _ONLY_IN.get(kind, {})).items():
        if name in given and given[name] not in known:
            raise ConfigError(f"{name} {given[name]!r} is not supported; {', '.join(map(str, known))} is")
    for name in ("n_routed_experts", "num_experts_per_tok"):
        if name in fields and fields[name] is None:
            raise ConfigError(f"{name} null is not supported; a number of experts is")
    found = {**FAMILIES[kind].defaults, **given}
    found |= _rope(found)
    layers = _whole(found, "num_hidden_layers", 61)
    if "mlp_layer_types" not in found and found.get("moe_layer_freq", 1) != 1:
        found["mlp_layer_types"] = _mlp_layer_types(found, layers)
    found |= _dense_first(found.get("mlp_layer_types"), layers)
    if "indexer_types" not in found:
        found["indexer_types"] = _indexer_types(found, layers)
    return found


def _whole(fields: Mapping[str, Any], name: str, default: int) -> int:
    """A field that counts something. Raises `ConfigError` for what is no whole number."""
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} {value!r} is not supported; a whole number is")
    return value


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, from either of the two places that files keep them in."""
    scaling = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling {scaling!r} is not supported; an object is")
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = scaling.pop("rope_theta", fields.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ConfigError(f"rope type {kind!r} is not supported; {' and '.join(ROPE_TYPES)} are")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"partial_rotary_factor {scaling['partial_rotary_factor']} is not supported; 1.0 is")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if "factor" not in scaling:
        raise ConfigError("rope_scaling of type yarn has no factor")
    scaling.setdefault("original_max_position_embeddings", fields.get("max_position_embeddings", 163840))
    for name in (*_ABOVE_ZERO, *_ZERO_OR_MORE):
        value = scaling.get(name, 1)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (name in _ABOVE_ZERO and value == 0):
            bound = "above 0" if name in _ABOVE_ZERO else "from 0 on"
            raise ConfigError(f"rope_scaling.{name} {value!r} is not supported; a number {bound} is")
    return {"rope_theta": theta, "rope_scaling": scaling}


def _mlp_layer_types(fields: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Which layers have experts: every n-th behind the first dense ones."""
    first, every = _whole(fields, "first_k_dense_replace", 3), fields["moe_layer_freq"]
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"moe_layer_freq {every!r} is not supported; a number of layers, at least 1, is")
    return tuple("dense" if layer < first or layer % every else "sparse" for layer in range(layers))


def _dense_first(kinds: Any, layers: int) -> dict[str, Any]:
    """A pattern that only says how many layers are dense at first, said as that number: then a config has one form."""
    if not isinstance(kinds, Sequence) or len(kinds) != layers:
        return {}
    first = next((layer for layer, kind in enumerate(kinds) if kind != "dense"), layers)
    if any(kind != "sparse" for kind in kinds[first:]):
        return {}
    return {"first_k_dense_replace": first, "mlp_layer_types": None}


def _indexer_types(fields: Mapping[str, Any], layers: int) -> tuple[str, ...] | None:
    """Which layers share a selection, said as a pattern such as "FSSF" or as a frequency; None when all select."""
    pattern = fields.get("index_topk_pattern")
    if pattern is not None:
        if not isinstance(pattern, Sequence):
            raise ConfigError(f'index_topk_pattern {pattern!r} is not supported; one like "FSSF" is')
        return tuple(
            {"F": "full", "S": "shared"}.get(kind, kind) if isinstance(kind, str) else kind for kind in pattern
        )
    every = max(_whole(fields, "index_topk_freq", 1), 1)
    offset = _whole(fields, "index_skip_topk_offset", 2)
    if every == 1:
        return None
    return tuple("shared" if max(layer - offset + 1, 0) % every else "full" for layer in range(layers))
