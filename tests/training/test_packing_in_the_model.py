"""The network computes on a packed row what it computes on each sample alone, and replay makes it decide the same."""

import numpy as np
import pytest
import torch

from baleen.model.config import ModelConfig
from baleen.model.network import Model, Replay
from baleen.rl.samples import Sample
from baleen.training.packing import pack_tree

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_nextn_predict_layers=0,
    num_attention_heads=2,
    first_k_dense_replace=1,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    index_n_heads=2,
    index_head_dim=16,
    index_topk=4,
    initializer_range=0.3,
)


@pytest.fixture
def model():
    network = Model(CONFIG)
    network.initialise(0)
    return network.double()


def ascending(selected):
    """Positions ascending with -1 last, as a trace holds them."""
    length = np.iinfo(np.int16).max
    ordered = np.sort(np.where(selected < 0, length, selected), axis=-1)
    return np.where(ordered == length, -1, ordered).astype(np.int16)


def scored_alone(model, tokens):
    with torch.no_grad():
        out = model(torch.tensor(tokens)[None].long())
    experts = torch.stack(out.experts, 2)[0, :-1].numpy().astype(np.int16)
    selected = ascending(torch.stack(out.selected, 2)[0, :-1].numpy())
    size = len(tokens)
    sampled = np.arange(size) > 10
    logprobs = np.zeros(size, dtype=np.float32)
    return Sample(tokens, sampled, logprobs, None, None, experts, selected, 0, 0.0, 0), out.logits[0]


def scored_packed(model, row, replay):
    recorded = Replay(torch.tensor(row.experts)[None].long(), torch.tensor(row.selected)[None].long())
    with torch.no_grad():
        out = model(
            torch.tensor(row.tokens)[None].long(),
            position_ids=torch.tensor(row.positions)[None].long(),
            subtree_end=torch.tensor(row.subtree_end)[None].long(),
            replay=recorded if replay else None,
        )
    return out.logits[0]


def group(model):
    """Five samples that share a prompt, some of them their first sampled token too; one is the beginning of another."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, 64, 10)
    tails = [np.concatenate([random.integers(0, 2, 1), random.integers(0, 64, 6 + i)]) for i in range(4)]
    tails.append(tails[3][:5])
    return zip(*(scored_alone(model, np.concatenate([prompt, t]).astype(np.int32)) for t in tails), strict=True)


def greatest_difference(samples, alone, row, packed):
    assert torch.isfinite(packed).all()
    pairs = zip(row.samples, row.row_index, strict=True)
    return max(float((packed[torch.tensor(path[:-1]).long()] - alone[i][:-1]).abs().max()) for i, path in pairs)


@pytest.mark.parametrize("replay", [False, True])
def test_a_packed_row_gives_each_sample_the_logits_that_it_has_alone(model, replay):
    samples, alone = group(model)
    (row,) = pack_tree(samples, 80)
    assert len(row.tokens) < sum(len(sample.tokens) for sample in samples) - 35
    assert greatest_difference(samples, alone, row, scored_packed(model, row, replay)) < 1e-5


def test_replay_repeats_the_sampler_s_choices_when_indexer_and_gate_have_moved_on(model):
    samples, alone = group(model)
    (row,) = pack_tree(samples, 80)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "indexer" in name or name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    assert greatest_difference(samples, alone, row, scored_packed(model, row, replay=False)) > 0.1
    assert greatest_difference(samples, alone, row, scored_packed(model, row, replay=True)) < 1e-5
