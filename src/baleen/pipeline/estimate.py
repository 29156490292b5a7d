"""What a recipe will cost, before it runs: parameters, arithmetic, memory, tokens, and time on this machine.

Everything follows from the shapes of DeepSeek-V3.2: MLA with a query and a key-value latent, the lightning indexer,
routed and shared experts, one MTP layer, embedding and head. A token that is trained costs about six operations per
active weight (two forward, four backward; Kaplan et al. 2020), one that is sampled two, plus its attention over the
context.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from baleen.model.config import ModelConfig
from baleen.pipeline.recipe import Recipe, ReinforcementSection, TrainSection

STEP_OVERHEAD = 5.0
"""Time of a small model's step over the time of its large matrix products alone; softmax, norms, routing and optimiser
fill the rest. A rough figure for laptops, the reason why the estimate is called one."""

DECODE_OVERHEAD = 40.0
"""The same for sampling, where each step multiplies a few rows only."""

TURN_SHARE = 0.5
"""Sampled tokens per allowed token: most turns stop early."""


@dataclass(frozen=True)
class Parameters:
    """Weights by part, and how many of them one token passes through."""

    by_part: Mapping[str, int]
    total: int
    active: int


@dataclass(frozen=True)
class StageEstimate:
    """A stage's tokens (trained and sampled) and its operations."""

    name: str
    trained_tokens: int
    sampled_tokens: int
    operations: float
    seconds: float


def count_parameters(config: ModelConfig) -> Parameters:
    """All weights of the network, the MTP layer included; `active` leaves out the MTP layer and the experts not chosen.

    The MTP layer shares embedding and head with the trunk, so they count once.
    """
    attention, indexer = _attention(config), _indexer(config) if config.sparse else 0
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    shared = expert * config.n_shared_experts
    routed = expert * config.n_routed_experts
    router = config.n_routed_experts * config.hidden_size
    moe_layers = len(config.moe_layers)
    dense_layers = config.num_hidden_layers - moe_layers
    norms = 2 * config.hidden_size
    mtp_layer = attention + indexer + norms + routed + shared + router
    mtp = config.num_nextn_predict_layers * (mtp_layer + 2 * config.hidden_size**2 + 3 * config.hidden_size)
    by_part = {
        "embedding": config.vocab_size * config.hidden_size,
        "head": config.vocab_size * config.hidden_size,
        "attention": config.num_hidden_layers * attention,
        "indexer": config.num_hidden_layers * indexer,
        "dense feed-forward": dense_layers * 3 * config.hidden_size * config.intermediate_size,
        "shared experts": moe_layers * shared,
        "routed experts": moe_layers * routed,
        "routers": moe_layers * router,
        "norms": config.num_hidden_layers * norms + config.hidden_size,
        "multi-token prediction": mtp,
    }
    total = sum(by_part.values())
    idle = moe_layers * expert * (config.n_routed_experts - config.num_experts_per_tok)
    return Parameters(by_part=by_part, total=total, active=total - mtp - idle)


def cache_bytes_per_token(config: ModelConfig, value_bytes: int = 2) -> int:
    """The cache's bytes per token: the latent, the shared rope key, and the indexer's key, in every layer."""
    values = config.kv_lora_rank + config.qk_rope_head_dim + (config.index_head_dim if config.sparse else 0)
    return config.num_hidden_layers * values * value_bytes


def attention_operations(config: ModelConfig, context: int, *, sparse: bool) -> float:
    """Operations of one query over `context` earlier tokens, all layers, beyond the weights' own products.

    Dense: scores and values over the context. Sparse: the indexer over the context, the heads over `index_topk` of it.
    """
    per_pair = 2 * config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    if not sparse:
        return float(config.num_hidden_layers * per_pair * context)
    index_pair = 2 * config.index_n_heads * config.index_head_dim
    return float(config.num_hidden_layers * (index_pair * context + per_pair * min(context, config.index_topk)))


def estimate_stage(recipe: Recipe, name: str, rate: float) -> StageEstimate | None:
    """What the section of that name will cost at `rate` operations a second; None for a stage without one."""
    section = getattr(recipe, name, None)
    config = recipe.network()
    weights = count_parameters(config).active - config.vocab_size * config.hidden_size  # the embedding is a look-up
    if isinstance(section, TrainSection):
        trained = section.steps * section.tokens_per_step
        context = section.sequence_length // 2
        sparse = name not in ("pretrain", "indexer_warmup")
        each = 6 * weights + 3 * attention_operations(config, context, sparse=sparse)
        return StageEstimate(name, trained, 0, trained * each, trained * each / rate * STEP_OVERHEAD)
    if isinstance(section, ReinforcementSection):
        episodes = section.steps * section.tasks_per_step * section.group_size
        sampled = round(episodes * section.max_tokens * TURN_SHARE)
        context = min(config.max_position_embeddings, 2 * section.max_tokens)
        reading = attention_operations(config, context, sparse=True)
        sampling, training = sampled * (2 * weights + reading), sampled * (6 * weights + 3 * reading)
        seconds = (sampling * DECODE_OVERHEAD + training * STEP_OVERHEAD) / rate
        return StageEstimate(name, sampled, sampled, sampling + training, seconds)
    return None


def measure_rate(config: ModelConfig, seconds: float = 0.2) -> float:
    """Operations a second of this machine's matrix product in float32, at the size of the network's own layers."""
    import numpy as np

    rows, inner, columns = 1024, config.hidden_size, min(config.intermediate_size, 4096)
    left = np.ones((rows, min(inner, 4096)), dtype=np.float32)
    right = np.ones((left.shape[1], columns), dtype=np.float32)
    began, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        left @ right
        # The fastest, because the first pays for the threads' start and others may wait for a busy neighbour.
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * rows * left.shape[1] * columns / fastest


def _attention(config: ModelConfig) -> int:
    heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    query = config.hidden_size * config.q_lora_rank + config.q_lora_rank * heads * (nope + rope)
    key_value = config.hidden_size * (config.kv_lora_rank + rope)
    key_value += config.kv_lora_rank * heads * (nope + config.v_head_dim)
    output = heads * config.v_head_dim * config.hidden_size
    return query + key_value + output + config.q_lora_rank + config.kv_lora_rank


def _indexer(config: ModelConfig) -> int:
    query = config.q_lora_rank * config.index_n_heads * config.index_head_dim
    key = config.hidden_size * config.index_head_dim + 2 * config.index_head_dim
    return query + key + config.hidden_size * config.index_n_heads
