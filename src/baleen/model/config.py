"""The model's configuration: the fields of a Hugging Face `config.json`, under their own names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from baleen.model.families import FAMILIES, MECHANISMS, ConfigError, read_fields


class UnsupportedCheckpointError(ValueError):
    """The folder holds a model that this version does not read."""


_AT_LEAST = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size"), 1),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank"), 1),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings"), 1),
    **dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("index_n_heads", "index_head_dim", "index_topk"), 1),
    **dict.fromkeys(("num_nextn_predict_layers", "first_k_dense_replace", "n_shared_experts"), 0),
    **dict.fromkeys(("routed_scaling_factor", "rms_norm_eps", "initializer_range"), 0),
}
"""The least value of each number."""


class ModelConfig(BaseModel):
    """Shapes and constants of a network (report section 2.1; the families are in `families.py`); default sizes are
    those of DeepSeek-V3.2, unknown keys of `config.json` are ignored."""

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
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048
    indexer_types: tuple[Literal["full", "shared"], ...] | None = None
    indexer_rope_interleave: bool = False
    rms_norm_eps: float = 1e-6
    rope_interleave: bool = True
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 163840
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} {value} is not supported; it is no switch")
        return fields

    @model_validator(mode="before")
    @classmethod
    def _as_its_family_computes(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or str(fields.get("model_type")) not in FAMILIES:
            return fields
        defaults = FAMILIES[fields["model_type"]].defaults
        return {name: defaults[name] for name in MECHANISMS if name in defaults} | fields

    @model_validator(mode="after")
    def _numbers_are_possible(self) -> ModelConfig:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} {value} is not supported; {least} or more is")
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim {self.qk_rope_head_dim} is not supported; an even number is")
        if not 1 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta {self.rope_theta} is not supported; a number above 1 is")
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelConfig:
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} must be a multiple of n_group {self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        allowed = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > allowed:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {allowed} experts of its groups "
                f"(n_routed_experts {self.n_routed_experts}, n_group {self.n_group}, topk_group {self.topk_group})"
            )
        if self.sparse and self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError("index_head_dim must hold the rope dimensions: at least qk_rope_head_dim")
        for name in ("mlp_layer_types", "indexer_types"):
            kinds = getattr(self, name)
            if kinds is not None and len(kinds) != self.num_hidden_layers:
                raise ValueError(f"{name} names {len(kinds)} layers, num_hidden_layers is {self.num_hidden_layers}")
        if self.indexer_types is not None and self.indexer_types[0] == "shared":
            raise ValueError("indexer_types begins with a shared layer: there is no selection to share yet")
        return self

    @property
    def sparse(self) -> bool:
        """Whether the network has a lightning indexer."""
        return self.model_type in FAMILIES and FAMILIES[self.model_type].sparse

    def index_shared(self, layer: int) -> bool:
        """Whether the layer has no indexer of its own and takes over the selection of the last layer that has one."""
        return self.indexer_types is not None and self.indexer_types[layer : layer + 1] == ("shared",)

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the layers with experts."""
        if self.mlp_layer_types is not None:
            return [layer for layer, kind in enumerate(self.mlp_layer_types) if kind == "sparse"]
        return list(range(min(self.first_k_dense_replace, self.num_hidden_layers), self.num_hidden_layers))

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens that end a turn."""
        ends = self.eos_token_id
        return frozenset(() if ends is None else (ends,) if isinstance(ends, int) else ends)

    @property
    def softmax_scale(self) -> float:
        """`(nope + rope)^-0.5`, times `mscale^2` under YaRN (`mscale = 0.1 mscale_all_dim ln(factor) + 1`)."""
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if self.rope_scaling and self.rope_scaling.get("mscale_all_dim") and self.rope_scaling["factor"] > 1:
            scale *= (0.1 * self.rope_scaling["mscale_all_dim"] * math.log(self.rope_scaling["factor"]) + 1.0) ** 2
        return float(scale)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ModelConfig:
        """Reads `<path>/config.json`. Raises `UnsupportedCheckpointError` for a model type not read here, `ConfigError`
        for a field that is missing, impossible, or not computed here; both name the file."""
        file = Path(path) / "config.json"
        if not file.is_file():
            raise UnsupportedCheckpointError(f"{file} does not exist: give a Hugging Face model folder")
        try:
            fields = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"{file} is not JSON ({error}); copy it again") from error
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UnsupportedCheckpointError(f"{file}: model_type {kind!r} is not supported; {', '.join(FAMILIES)} are")
        try:
            return cls(**read_fields(fields))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            message = wrong["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{file}: {where}{': ' if where else ''}{message}") from error

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of a checkpoint that `transformers` loads as well."""
        fields = {name: value for name, value in self.model_dump().items() if value is not None}
        sparse = self.moe_layers
        if self.mlp_layer_types is not None:  # where experts begin, for the families that are told it as a number
            fields["first_k_dense_replace"] = min(sparse, default=self.num_hidden_layers)
        elif self.model_type == "glm4_moe_lite":  # which reads no number
            fields["mlp_layer_types"] = ["sparse" if i in sparse else "dense" for i in range(self.num_hidden_layers)]
        scaling = self.rope_scaling or {"rope_type": "default"}
        rope = {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type")), "rope_theta": self.rope_theta}
        return {
            **fields,
            **{name: getattr(self, name) for name in ("q_lora_rank", "bos_token_id", "eos_token_id")},
            "architectures": [FAMILIES[self.model_type].architecture],
            "rope_parameters": rope,
            "num_key_value_heads": self.num_attention_heads,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }
