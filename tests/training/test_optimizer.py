"""Two optimisers behind one step: it goes on to the same bits, turns matrices evenly, and keeps to its course."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from baleen.training.optimizer import Optimizer, orthogonalise, schedule
from tiny import tiny_model


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_restored_it_goes_on_to_the_same_bits(tmp_path):
    whole, resumed = tiny_model(), tiny_model()
    optimizer, first = Optimizer(whole.named_parameters()), Optimizer(resumed.named_parameters())
    for step in range(3):
        for model, each in ((whole, optimizer), (resumed, first)):
            set_gradients(model, step)
            each.step(1e-2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Optimizer(resumed.named_parameters())
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        for model, each in ((whole, optimizer), (resumed, second)):
            set_gradients(model, step)
            each.step(1e-2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_trainable_parameter_moves_and_no_frozen_one():
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." in name)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = Optimizer(model.named_parameters())
    set_gradients(model, 0)
    optimizer.step(1e-2)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != (".indexer." in name), name


def test_gains_move_at_their_own_rate():
    moved = {}
    for ratio in (1.0, 8.0):
        model = tiny_model()
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizer = Optimizer(model.named_parameters(), muon=False, gain_ratio=ratio, weight_decay=0.0)
        set_gradients(model, 0)
        optimizer.step(1e-3)
        moved[ratio] = {name: (value - before[name]).norm().item() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        assert moved[8.0][name] == pytest.approx(moved[1.0][name] * (8 if value.dim() < 2 else 1), rel=1e-3), name


def test_embeddings_head_router_and_vectors_are_not_orthogonalised():
    model = tiny_model()
    matrices = {id(matrix) for matrix in Optimizer(model.named_parameters()).matrices}
    names = {name for name, value in model.named_parameters() if id(value) in matrices}
    assert "layers.1.mlp.experts.gate_up_proj" in names
    assert "layers.0.self_attn.q_b_proj.weight" in names
    for name in ("embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "norm.weight"):
        assert name not in names
    assert "layers.0.mlp.gate_proj.weight" in names


def test_the_gradient_is_clipped_and_cleared_and_its_norm_told():
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = Optimizer([("x", parameter)])
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    assert optimizer.step(0.1) == pytest.approx(5.0)
    assert parameter.grad is None


def test_a_gradient_that_is_no_number_stops_the_training_and_touches_nothing():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer([("x", matrix), ("y", vector)])
    matrix.grad, vector.grad = torch.full((2, 2), torch.nan), torch.ones(2)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        optimizer.step(0.1)
    assert torch.equal(matrix, torch.ones(2, 2))
    assert torch.equal(vector, torch.ones(2))


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (3, 20, 12)])
def test_orthogonalising_brings_every_singular_value_near_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 5
    values = torch.linalg.svdvals(orthogonalise(matrix))
    before = torch.linalg.svdvals(matrix)
    large = before > 0.05 * before.amax(-1, keepdim=True)  # five iterations lift the smallest only part of the way
    assert values[large].min() > 0.6
    assert values.max() < 1.3


def test_orthogonalising_keeps_the_directions():
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalise(matrix) @ vh.T
    assert (turned - turned.diag().diag()).abs().max() < 0.05
    assert turned.diag().min() > 0.3


def test_stacked_experts_are_turned_one_by_one():
    stack = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(2))
    stack[1] *= 1000
    for expert in range(3):
        torch.testing.assert_close(orthogonalise(stack)[expert], orthogonalise(stack[expert]), atol=0.02, rtol=0)


def test_the_course_warms_up_stays_and_falls():
    rates = [schedule(step, 100, 2.0, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:71] == [2.0] * 61
    assert rates[85] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(2.0 * 0.05)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_a_course_without_warm_up_starts_at_the_peak():
    assert schedule(0, 1, 1.0, warmup=0) == 1.0
