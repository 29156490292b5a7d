"""What a network costs, from its config alone: parameters, operations, bytes of weights, cache and activations.

One list holds every weight of the network by its shape (`weights`), and all counts are sums over it, so that they
cannot disagree. Operations are those of matrix products, two per multiplication and addition; norms, softmax and the
top-k are left out. A query-key pair of one layer costs, at the published shapes (`pair_flops`):

    indexer  2 H_i D_i                       16.4 kFLOP
    MHA      2 H (nope + rope + V)           81.9 kFLOP   keys and values expanded: prefill
    MQA      2 H (C + R + C)                278.5 kFLOP   `kv_b_proj` folded into query and output: decoding

Sources: DeepSeek-V3.2 report, section 2.1; README_WEIGHTS of DeepSeek-V3-Base on the Hub (671B in all,
36.6B per token with the head).
"""

# H = attention heads, V = value dims, C = latent dims, R = rope dims, H_i = index heads, D_i = index head dims

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from baleen.model.config import ModelConfig

Precision = Literal["bf16", "fp8"]

FP8_BLOCK = 128
"""Side of a weight block, and length of a group of cached values, under one fp32 scale."""

KEPT_IN_BF16 = ("embed_tokens", "lm_head", "eh_proj", "gate.weight", "weights_proj")
"""Matrices that FP8 checkpoints leave unquantised; vectors are left so too."""

MTP = "multi-token prediction"
PARTS = (
    *("embedding", "head", "attention", "indexer", "dense feed-forward", "shared experts", "routed experts"),
    *("routers", "norms", MTP),
)
"""The parts that parameters are counted by; the MTP layer's own attention, experts and so on are all its part."""

ROOT = -1
"""The `layer` of what lies outside the layers: embedding, final norm, head."""


@dataclass(frozen=True)
class Weight:
    """One shape of weight, [outputs, inputs] (a vector has inputs 1): the network holds `copies` of it in this place,
    and a token passes through `used` of them."""

    name: str
    part: str
    layer: int
    outputs: int
    inputs: int = 1
    copies: int = 1
    used: int = 1

    @property
    def parameters(self) -> int:
        """Numbers in all copies."""
        return self.copies * self.outputs * self.inputs

    @property
    def active(self) -> int:
        """Numbers that one token is multiplied with."""
        return self.used * self.outputs * self.inputs

    @property
    def is_expert(self) -> bool:
        """Whether it is a routed expert's, which devices can divide among themselves."""
        return ".experts." in self.name

    def bytes(self, precision: Precision) -> int:
        """Stored bytes of all copies: 2 per number, or 1 and an fp32 scale per block where FP8 applies."""
        if precision == "bf16" or self.inputs == 1 or any(part in self.name for part in KEPT_IN_BF16):
            return 2 * self.parameters
        blocks = math.ceil(self.outputs / FP8_BLOCK) * math.ceil(self.inputs / FP8_BLOCK)
        return self.parameters + 4 * self.copies * blocks


@dataclass(frozen=True)
class Parameters:
    """Learned numbers by part, and how many of them a token is multiplied with.

    `active` leaves out the embedding (one of its rows is looked up), the MTP layer and the experts not chosen.
    `gate_biases` are the routers' `e_score_correction_bias`: buffers moved by the balancing, beside the total.
    """

    by_part: Mapping[str, int]
    active_by_part: Mapping[str, int]
    gate_biases: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.by_part.values())

    @property
    def active(self) -> int:
        """The active ones of all parts."""
        return sum(self.active_by_part.values())


@dataclass(frozen=True)
class PairFlops:
    """Operations per query-key pair and layer."""

    indexer: int
    mha: int
    mqa: int


@dataclass(frozen=True)
class Flops:
    """Operations of one token's forward pass through all layers and the head, the MTP layer left out."""

    weights: int
    """Projections, feed-forward, chosen experts, routers and head."""

    indexer: int
    """The indexer's projections and its scores."""

    attention: int
    """Scores and weighted values over the keys attended to."""

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.indexer + self.attention


def weights(config: ModelConfig) -> list[Weight]:
    """Every learned weight of `model.network.Model`, under its parameter names (without the layer's prefix).

    Gate and up projections are one entry each, as published; a tied head has no copy of its own.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    found = [Weight("embed_tokens.weight", "embedding", ROOT, config.vocab_size, hidden, used=0)]
    for layer in range(layers):
        found += _layer(config, layer, experts=layer in config.moe_layers)
    found.append(Weight("norm.weight", "norms", ROOT, hidden))
    head_copies = 0 if config.tie_word_embeddings else 1
    found.append(Weight("lm_head.weight", "head", ROOT, config.vocab_size, hidden, copies=head_copies))
    if config.num_nextn_predict_layers:
        extra = [*_layer(config, layers, experts=True), Weight("eh_proj.weight", MTP, layers, hidden, 2 * hidden)]
        extra += [Weight(f"{name}.weight", MTP, layers, hidden) for name in ("enorm", "hnorm", "norm")]
        found += [Weight(w.name, MTP, layers, w.outputs, w.inputs, w.copies, used=0) for w in extra]
    return found


def count_parameters(config: ModelConfig) -> Parameters:
    """The network's parameters by part. Embedding and head are counted once, although the MTP layer uses them too."""
    by_part, active = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for weight in weights(config):
        by_part[weight.part] += weight.parameters
        active[weight.part] += weight.active
    gates = len(config.moe_layers) + min(1, config.num_nextn_predict_layers)
    return Parameters(by_part, active, gates * config.n_routed_experts)


def pair_flops(config: ModelConfig) -> PairFlops:
    """What one query-key pair costs in the indexer, in the expanded and in the absorbed form of MLA."""
    heads, rope, latent = config.num_attention_heads, config.qk_rope_head_dim, config.kv_lora_rank
    return PairFlops(
        indexer=2 * config.index_n_heads * config.index_head_dim,
        mha=2 * heads * (config.qk_nope_head_dim + rope + config.v_head_dim),
        mqa=2 * heads * (latent + rope + latent),
    )


def forward_flops(config: ModelConfig, context: int, *, sparse: bool, decoding: bool = False) -> Flops:
    """Operations of one token that sees `context` keys, itself included.

    Dense: the MHA form in prefill and training, the MQA form over the whole cache in decoding. Sparse: the indexer
    scores all keys once there are more than `index_topk`, and MQA runs over the chosen ones; a prefill takes MHA
    under a mask instead where that is less. Raises `ValueError` for sparse attention without an indexer.
    """
    if sparse and not config.sparse:
        raise ValueError(f"a {config.model_type} network has no indexer, so it attends densely; convert it first")
    pair, layers = pair_flops(config), config.num_hidden_layers
    matrices = [weight for weight in weights(config) if weight.inputs > 1]
    products = 2 * sum(weight.active for weight in matrices if weight.part != "indexer")
    dense = context * (pair.mqa if decoding else pair.mha)
    if not sparse:
        return Flops(products, 0, layers * dense)
    projections = 2 * sum(weight.active for weight in matrices if weight.part == "indexer")
    scored = context if context > config.index_topk else 0
    attended = pair.mqa * min(context, config.index_topk)
    return Flops(
        weights=products,
        indexer=projections + len(indexing_layers(config)) * pair.indexer * scored,
        attention=layers * (attended if decoding else min(attended, dense)),
    )


def indexing_layers(config: ModelConfig) -> list[int]:
    """Layers of the trunk with an indexer of their own; the others are dense or take over a selection."""
    return [layer for layer in range(config.num_hidden_layers) if config.sparse and not config.index_shared(layer)]


def cache_layer_bytes(config: ModelConfig, precision: Precision = "bf16") -> tuple[int, int]:
    """Bytes per token and layer: (latent with its rope key, index key); at the published shapes (1152, 256) in bf16
    and (656, 132) in FP8, where values are e4m3 with an fp32 scale per 128 and the rope key stays bf16."""
    latent, rope, index = config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim
    if precision == "bf16":
        return 2 * (latent + rope), 2 * index
    return _fp8_group_bytes(latent) + 2 * rope, _fp8_group_bytes(index)


def cache_bytes_per_token(config: ModelConfig, precision: Precision = "bf16") -> int:
    """Bytes that one token leaves in the cache, all layers of the trunk."""
    latent, index = cache_layer_bytes(config, precision)
    return config.num_hidden_layers * latent + len(indexing_layers(config)) * index


def activation_bytes_per_token(config: ModelConfig) -> tuple[int, int]:
    """bf16 bytes of one training token under recomputation: (kept through the forward pass, of one layer at work).

    Kept are each layer's input and its indexer's choice (`index_topk` int32 positions), which the recomputation must
    repeat and not make anew: a top-k that falls differently would give gradients of another function. At work are the
    values of the widest layer that its backward pass reads, and as much again for their gradients: attention in its
    sparse (absorbed) or dense (expanded) form, and the feed-forward or the copies of the token that its experts
    receive. Logits and index scores are made in chunks and not counted.
    """
    hidden, heads, rope = config.hidden_size, config.num_attention_heads, config.qk_rope_head_dim
    query = (config.q_lora_rank or 0) + heads * (config.qk_nope_head_dim + rope)
    rows = config.kv_lora_rank + rope
    if config.sparse:
        keys = heads * (rows + config.kv_lora_rank) + (config.index_n_heads + 1) * config.index_head_dim
    else:
        keys = heads * (config.qk_nope_head_dim + rope + config.v_head_dim)
    attention = 3 * hidden + query + rows + keys + heads * config.v_head_dim
    shared, expert = config.n_shared_experts or 0, config.moe_intermediate_size
    widths = [3 * config.intermediate_size] if len(config.moe_layers) < config.num_hidden_layers else []
    if config.moe_layers:
        widths.append(config.num_experts_per_tok * (2 * hidden + 3 * expert) + 3 * expert * shared)
    layers = config.num_hidden_layers + min(1, config.num_nextn_predict_layers)
    choices = 4 * config.index_topk * len(indexing_layers(config))
    return 2 * layers * hidden + choices, 2 * 2 * (attention + max(widths))


def _layer(config: ModelConfig, layer: int, *, experts: bool) -> Iterator[Weight]:
    hidden = config.hidden_size
    yield Weight("input_layernorm.weight", "norms", layer, hidden)
    yield Weight("post_attention_layernorm.weight", "norms", layer, hidden)
    yield from _attention(config, layer)
    if config.sparse and not config.index_shared(layer):
        yield from _indexer(config, layer)
    if not experts:
        yield from _feed_forward("mlp", "dense feed-forward", layer, hidden, config.intermediate_size)
        return
    width, count = config.moe_intermediate_size, config.n_routed_experts
    yield Weight("mlp.gate.weight", "routers", layer, count, hidden)
    if config.n_shared_experts:
        yield from _feed_forward("mlp.shared_experts", "shared experts", layer, hidden, width * config.n_shared_experts)
    chosen = config.num_experts_per_tok
    yield from _feed_forward("mlp.experts", "routed experts", layer, hidden, width, copies=count, used=chosen)


def _attention(config: ModelConfig, layer: int) -> Iterator[Weight]:
    hidden, heads, rope = config.hidden_size, config.num_attention_heads, config.qk_rope_head_dim
    queries, latent = heads * (config.qk_nope_head_dim + rope), config.kv_lora_rank
    shapes = {
        "kv_a_proj_with_mqa.weight": (latent + rope, hidden),
        "kv_a_layernorm.weight": (latent, 1),
        "kv_b_proj.weight": (heads * (config.qk_nope_head_dim + config.v_head_dim), latent),
        "o_proj.weight": (hidden, heads * config.v_head_dim),
    }
    biases = {"kv_a_proj_with_mqa.bias": latent + rope, "o_proj.bias": hidden}
    if config.q_lora_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes["q_a_proj.weight"] = (config.q_lora_rank, hidden)
        shapes["q_a_layernorm.weight"] = (config.q_lora_rank, 1)
        shapes["q_b_proj.weight"] = (queries, config.q_lora_rank)
        biases["q_a_proj.bias"] = config.q_lora_rank
    if config.attention_bias:
        shapes |= {name: (width, 1) for name, width in biases.items()}
    for name, (outputs, inputs) in shapes.items():
        yield Weight(f"self_attn.{name}", "attention", layer, outputs, inputs)


def _indexer(config: ModelConfig, layer: int) -> Iterator[Weight]:
    heads, width = config.index_n_heads, config.index_head_dim
    shapes = {
        "wq_b.weight": (heads * width, config.q_lora_rank or config.hidden_size),
        "wk.weight": (width, config.hidden_size),
        "k_norm.weight": (width, 1),
        "k_norm.bias": (width, 1),
        "weights_proj.weight": (heads, config.hidden_size),
    }
    for name, (outputs, inputs) in shapes.items():
        yield Weight(f"self_attn.indexer.{name}", "indexer", layer, outputs, inputs)


def _feed_forward(
    name: str, part: str, layer: int, hidden: int, width: int, *, copies: int = 1, used: int = 1
) -> Iterator[Weight]:
    for projection in ("gate_proj", "up_proj"):
        yield Weight(f"{name}.{projection}.weight", part, layer, width, hidden, copies, used)
    yield Weight(f"{name}.down_proj.weight", part, layer, hidden, width, copies, used)


def _fp8_group_bytes(width: int) -> int:
    return width + 4 * math.ceil(width / FP8_BLOCK)
