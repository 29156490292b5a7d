"""The network: DeepSeek-V3.2 as one module for training, sampling and scoring.

    x = embed(ids); for each layer: x += attention(norm(x)); x += ffn(norm(x)); logits = head(norm(x))

Besides plain batches, a row may hold a whole TREE of sequences that share prefixes: `subtree_end[b, s]` says where the
subtree of token s ends, and token k is seen by query q iff `k <= q < subtree_end[k]`. Packed documents, a prompt with a
group of answers, and ordinary causal rows are all cases of it.
"""

# B = batch, S = tokens, D = hidden, V = vocabulary

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from baleen.model.attention import Attention, AttentionContext, IndexerLoss
from baleen.model.cache import CacheView, FlatView
from baleen.model.compiled import CompiledNetwork
from baleen.model.config import ModelConfig
from baleen.model.layers import Cast, FeedForward, Linear, RMSNorm
from baleen.model.moe import MoE
from baleen.model.rotary import RotaryCache, rotary_frequencies, rotary_table
from baleen.ops.visibility import Visibility


@dataclass(frozen=True)
class Replay:
    """Decisions to repeat: experts [B, S, moe layers, K] and selected [B, S, layers, k] (row positions), -1 for
    none."""

    experts: Tensor | None = None
    selected: Tensor | None = None


@dataclass
class Output:
    """A forward's results. `hidden` [B, S, D] is after the final norm; `logits` [B, S, V] is computed when asked
    for."""

    hidden: Tensor
    logits: Tensor
    experts: list[Tensor] = field(default_factory=list)
    """[B, S, K] per MoE layer."""

    selected: list[Tensor | None] = field(default_factory=list)
    """[B, S, k] int32 per layer, ascending, -1 behind; None where every visible key was seen."""

    indexer_kl: list[Tensor] = field(default_factory=list)
    """[B, S] per layer, when `indexer_loss` was given."""


class Layer(nn.Module):
    """Attention, then a dense feed-forward or experts."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MoE(config)
            if index in config.moe_layers or index >= config.num_hidden_layers
            else FeedForward(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self, x: Tensor, context: AttentionContext, experts: Tensor | None, selected: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """x [B, S, D] -> x [B, S, D], experts [B, S, K] or None, selected, KL."""
        attended, selected, kl = self.self_attn(self.input_layernorm(x), context, selected)
        x = x + attended
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            mixed, chosen = self.mlp(normed, experts, padded=isinstance(context.cache, FlatView))
            return x + mixed, chosen, selected, kl
        return x + self.mlp(normed), None, selected, kl


class MultiTokenPrediction(nn.Module):
    """Predicts one token further: `layer(eh_proj([enorm(embed(next)); hnorm(x)]))`, head shared (DeepSeek-V3, 2.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.layer = Layer(config, config.num_hidden_layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, next_embedding: Tensor, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """hidden [B, S, D] of the trunk behind its final norm, embedding [B, S, D] of the following token -> hidden
        [B, S, D], experts."""
        joined = torch.cat((self.enorm(next_embedding), self.hnorm(hidden)), dim=-1)
        x, experts, _, _ = self.layer(self.eh_proj(joined).to(hidden.dtype), context, None, None)
        return self.norm(x), experts


class Model(nn.Module):
    """DeepSeek-V3.2 for causal language modelling."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = cast(nn.Parameter, self.embed_tokens.weight)
        self.moe_places = {layer: place for place, layer in enumerate(config.moe_layers)}
        self.mtp = MultiTokenPrediction(config) if config.num_nextn_predict_layers else None
        frequencies, self.rotary_factor = rotary_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._rotations = RotaryCache()

    def initialise(self, seed: int) -> None:
        """Fresh weights: normal with `initializer_range`, the projections into the residual stream scaled by depth."""
        generator = torch.Generator().manual_seed(seed)
        depth_scale = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                std = self.config.initializer_range * (depth_scale if into_residual else 1.0)
                nn.init.normal_(parameter, std=std, generator=generator)

    def set_compute_dtype(self, dtype: torch.dtype | None) -> Model:
        """The dtype of matrix products; None computes in the parameters' own. Returns self."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Cast):
                    value.dtype = dtype
        return self

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that matrix products run in."""
        return self.lm_head.cast.dtype or self.lm_head.weight.dtype

    def context(
        self,
        shape: tuple[int, int],
        *,
        position_ids: Tensor | None = None,
        subtree_end: Tensor | None = None,
        sparse: bool | None = None,
        cache: CacheView | FlatView | None = None,
        indexer_loss: IndexerLoss | None = None,
        indexer_stride: int = 1,
        indexer_offset: int = 0,
        probe: list[tuple[Tensor, Tensor | None, Tensor]] | None = None,
    ) -> AttentionContext:
        """What the layers of one forward over ids [B, S] share."""
        device = self.frequencies.device
        if cache is not None:
            position_ids = cache.positions
            seen = Visibility(cache.positions, cache.length)
        else:
            seen = replace(Visibility.causal(shape[1], device), subtree_end=subtree_end)
        if position_ids is None:
            position_ids = seen.positions
        if isinstance(cache, FlatView):
            cos, sin = (table[position_ids] for table in self.rotations(cache.length))
        else:
            cos, sin = rotary_table(position_ids, self.frequencies, self.rotary_factor)
        return AttentionContext(
            cos=cos,
            sin=sin,
            seen=seen,
            sparse=self.config.sparse if sparse is None else sparse,
            cache=cache,
            compiled=isinstance(cache, FlatView)
            and cache.compiled
            and sparse is not False
            and not torch.is_grad_enabled(),
            indexer_loss=indexer_loss,
            indexer_stride=indexer_stride,
            indexer_offset=indexer_offset,
            probe=probe,
        )

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        subtree_end: Tensor | None = None,
        sparse: bool | None = None,
        cache: CacheView | FlatView | None = None,
        replay: Replay | None = None,
        indexer_loss: IndexerLoss | None = None,
        indexer_stride: int = 1,
        indexer_offset: int = 0,
        probe: list[tuple[Tensor, Tensor | None, Tensor]] | None = None,
        logits: bool = True,
    ) -> Output:
        """input_ids [B, S] -> Output. `sparse=False` attends densely; `logits=False` leaves the head to the caller."""
        context = self.context(
            (input_ids.shape[0], input_ids.shape[1]),
            position_ids=position_ids,
            subtree_end=subtree_end,
            sparse=sparse,
            cache=cache,
            indexer_loss=indexer_loss,
            indexer_stride=indexer_stride,
            indexer_offset=indexer_offset,
            probe=probe,
        )
        if context.compiled:
            return self._run_compiled(input_ids, context, logits)
        x = self.embed_tokens(input_ids)
        out = Output(hidden=x, logits=x.new_empty(0))
        selected = None
        for index, layer in enumerate(self.layers):
            experts = None
            if replay is not None and replay.experts is not None and index in self.moe_places:
                experts = replay.experts[:, :, self.moe_places[index]]
            if replay is not None and replay.selected is not None:
                selected = replay.selected[:, :, index]
            elif not self.config.index_shared(index):
                selected = None  # a layer with an indexer selects anew, the others take over what was selected last
            x, experts, selected, kl = layer(x, context, experts, selected)
            if experts is not None:
                out.experts.append(experts)
            if kl is not None:
                out.indexer_kl.append(kl)
            out.selected.append(selected)
        out.hidden = self.norm(x)
        if logits:
            out.logits = self.lm_head(out.hidden).float()
        return out

    def rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length or more, R/2] of the first positions."""
        return self._rotations.first(length, self.frequencies, self.rotary_factor)

    def _run_compiled(self, input_ids: Tensor, context: AttentionContext, logits: bool) -> Output:
        """The same for a flat list [1, M] of a small network, in compiled loops."""
        assert isinstance(context.cache, FlatView)
        network = CompiledNetwork.of(self)
        made = network.forward(input_ids[0].numpy(), context.cache, context.cos[0].numpy(), context.sin[0].numpy())
        hidden = torch.from_numpy(made.hidden).unsqueeze(0)
        return Output(
            hidden=hidden,
            logits=torch.from_numpy(network.logits(made.hidden)).unsqueeze(0) if logits else hidden.new_empty(0),
            experts=[torch.from_numpy(each).unsqueeze(0) for each in made.experts],
            selected=[torch.from_numpy(each).unsqueeze(0) for each in made.selected],
        )

    def predict_second(
        self, hidden: Tensor, next_ids: Tensor, context: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """The MTP head: from the trunk's final hidden [B, S, D], the hidden [B, S, D] that predicts the token after
        `next_ids` [B, S], and its experts. A context with a cache (made with `drafts`) drafts while decoding."""
        if self.mtp is None:
            raise ValueError("this model has no multi-token-prediction layer (num_nextn_predict_layers is 0)")
        if context.compiled and isinstance(context.cache, FlatView):
            made = CompiledNetwork.of(self).second_hidden(
                hidden[0].numpy(), next_ids[0].numpy(), context.cache, context.cos[0].numpy(), context.sin[0].numpy()
            )
            return torch.from_numpy(made).unsqueeze(0), None
        second, experts = self.mtp(hidden, self.embed_tokens(next_ids), context)
        return second, experts
