"""The model's configuration: the fields of a Hugging Face `config.json`, under their own names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class UnsupportedCheckpointError(ValueError):
    """The folder holds a model that this version does not read."""


class ModelConfig(BaseModel):
    """Shapes and constants of a DeepSeek-V3.2 network (report section 2.1); unknown keys of `config.json` are
    ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: str = "deepseek_v32"
    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 128
    first_k_dense_replace: int = 3
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    q_lora_rank: int | None = 1536
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    rope_interleave: bool = True
    indexer_rope_interleave: bool = False
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 163840
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int | None = Field(default=None)

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} must be a multiple of n_group {self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        allowed = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > allowed:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {allowed} experts of its groups"
            )
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError("index_head_dim must hold the rope dimensions: at least qk_rope_head_dim")
        return self

    @property
    def sparse(self) -> bool:
        """Whether the network has a lightning indexer (V3.2); V3 checkpoints have none."""
        return self.model_type == "deepseek_v32"

    def index_shared(self, layer: int) -> bool:
        """Whether the layer has no indexer of its own and takes over the selection of the last layer that has one."""
        return False

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the layers with experts."""
        return list(range(min(self.first_k_dense_replace, self.num_hidden_layers), self.num_hidden_layers))

    @property
    def softmax_scale(self) -> float:
        """`(nope + rope)^-0.5`, times `mscale^2` under YaRN (`mscale = 0.1 mscale_all_dim ln(factor) + 1`)."""
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if self.rope_scaling and self.rope_scaling.get("mscale_all_dim") and self.rope_scaling["factor"] > 1:
            scale *= (0.1 * self.rope_scaling["mscale_all_dim"] * math.log(self.rope_scaling["factor"]) + 1.0) ** 2
        return float(scale)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ModelConfig:
        """Reads `<path>/config.json`. Raises `UnsupportedCheckpointError` for a model type not read here."""
        file = Path(path) / "config.json"
        if not file.is_file():
            raise UnsupportedCheckpointError(f"{file} does not exist: give a Hugging Face model folder")
        fields = json.loads(file.read_text())
        if fields.get("model_type") not in ("deepseek_v3", "deepseek_v32"):
            raise UnsupportedCheckpointError(
                f"{file}: model_type {fields.get('model_type')!r} is not supported; deepseek_v3 and deepseek_v32 are"
            )
        rope = fields.pop("rope_parameters", None)  # the name that transformers 5 writes
        if rope:
            fields.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
            if fields.get("rope_scaling") is None and rope.get("rope_type", "default") != "default":
                fields["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of a checkpoint that `transformers` loads as well."""
        fields = self.model_dump()
        scaling = self.rope_scaling or {"rope_type": "default"}
        rope = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type")), "rope_theta": self.rope_theta}
        name = "DeepseekV32ForCausalLM" if self.sparse else "DeepseekV3ForCausalLM"
        return {
            **fields,
            "architectures": [name],
            "rope_parameters": rope,
            "num_key_value_heads": self.num_attention_heads,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }
