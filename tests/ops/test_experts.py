"""Routing follows the group rule, ties included; the experts' computation is a loop over tokens, only faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from baleen.ops.experts import mixing_weights, route, run_experts


def chosen(scores, bias=None, **rule):
    row = torch.tensor([scores])
    return route(row, torch.zeros(len(scores)) if bias is None else torch.tensor(bias), **rule)[0].tolist()


def test_groups_are_ranked_by_the_sum_of_their_two_best():
    # Group sums: .9 + .1 = 1.0, .6 + .5 = 1.1, .7 + .2 = .9: the best single expert, 0, stands in a group that loses.
    scores = [0.9, 0.1, 0.6, 0.5, 0.7, 0.2]
    assert chosen(scores, n_group=3, topk_group=1, topk=2) == [2, 3]
    assert chosen(scores, n_group=3, topk_group=2, topk=2) == [0, 2]
    assert chosen(scores, n_group=3, topk_group=3, topk=2) == [0, 4]


def test_without_groups_the_best_experts_win():
    assert chosen([0.1, 0.4, 0.3, 0.2], n_group=1, topk_group=1, topk=3) == [1, 2, 3]


def test_ties_go_to_the_lower_group_and_the_lower_expert():
    assert chosen([0.5] * 6, n_group=3, topk_group=1, topk=2) == [0, 1]
    assert chosen([0.2, 0.5, 0.5, 0.5], n_group=1, topk_group=1, topk=2) == [1, 2]
    assert chosen([0.1, 0.1, 0.4, 0.4, 0.4, 0.4], n_group=3, topk_group=2, topk=3) == [2, 3, 4]


def test_the_bias_decides_who_is_chosen_but_not_how_much_it_counts():
    scores, bias = torch.tensor([[0.8, 0.6, 0.2, 0.1]]), torch.tensor([0.0, -0.5, 0.5, 0.0])
    experts = route(scores, bias, n_group=1, topk_group=1, topk=2)
    assert experts.tolist() == [[0, 2]]
    weights = mixing_weights(scores, experts, normalise=True, scaling=2.5)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.5]]))
    raw = mixing_weights(scores, experts, normalise=False, scaling=1.0)
    torch.testing.assert_close(raw, torch.tensor([[0.8, 0.2]]))


def test_a_negative_biased_score_still_beats_a_group_that_was_dropped():
    scores, bias = [0.9, 0.8, 0.1, 0.1], [-2.0, -2.0, -9.0, -9.0]
    assert chosen(scores, bias, n_group=2, topk_group=1, topk=2) == [0, 1]


def test_groups_of_v2_are_ranked_by_their_best_expert_and_greedy_has_none():
    # The same scores as above: maxima .9, .6, .7, so the groups rank 0, 2, 1.
    scores = [0.9, 0.1, 0.6, 0.5, 0.7, 0.2]
    row = torch.tensor([scores])

    def v2(method, topk_group, topk):
        experts = route(row, None, method=method, n_group=3, topk_group=topk_group, topk=topk)
        return experts[0].tolist()

    assert v2("group_limited_greedy", 1, 2) == [0, 1]
    assert v2("group_limited_greedy", 2, 3) == [0, 4, 5]
    assert v2("greedy", 1, 3) == [0, 4, 2]


def test_equal_best_experts_rank_the_lower_group_first():
    row = torch.tensor([[0.1, 0.3, 0.3, 0.0, 0.2, 0.1]])
    experts = route(row, None, method="group_limited_greedy", n_group=3, topk_group=1, topk=2)
    assert experts.tolist() == [[1, 0]]


def naive(x, experts, weights, gate_up, down):
    rows = []
    for a in range(x.shape[0]):
        total = torch.zeros_like(x[a])
        for expert, weight in zip(experts[a].tolist(), weights[a], strict=True):
            gate, up = (gate_up[expert] @ x[a]).chunk(2)
            total = total + weight * (down[expert] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 13])
def test_values_and_gradients_are_those_of_a_loop_over_tokens(tokens):
    generator = torch.Generator().manual_seed(tokens)
    shapes = {"x": (tokens, 6), "weights": (tokens, 2), "gate_up": (5, 8, 6), "down": (5, 6, 4)}
    first = {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}
    # Expert 4 gets no token, and one row names an expert twice, as a forced routing may.
    experts = torch.randint(0, 4, (tokens, 2), generator=generator)
    experts[0] = 3
    results = []
    for form in (run_experts, naive):
        parts = {name: value.clone().requires_grad_() for name, value in first.items()}
        out = form(parts["x"], experts, parts["weights"], parts["gate_up"], parts["down"])
        out.sin().sum().backward()
        results.append([out.detach(), *(part.grad for part in parts.values())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)
