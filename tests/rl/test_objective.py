"""GRPO's parts against numbers worked by hand, autograd in float64, and expectations by enumeration."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baleen.rl import objective

D = torch.float64
LOG2 = math.log(2)


def rows(*values):
    return torch.tensor(values, dtype=D)


def loss_of(logp, old, advantages, mask, ref=None, clip=0.2, beta=0.0, delta=None):
    return objective.grpo_loss(logp, old, ref, advantages, mask, clip=clip, beta=beta, delta=delta)


def test_advantage_is_the_reward_less_the_mean_of_the_valid_members_of_its_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 5.0, math.nan, 3.0])
    groups = torch.tensor([7, 7, 7, -2, 7, -2])
    valid = torch.tensor([True, True, True, True, False, True])
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3, 1.0, 0.0, -1.0])
    torch.testing.assert_close(objective.group_advantages(rewards, groups, valid), expected)


def test_advantage_is_not_divided_by_the_standard_deviation():
    groups, valid = torch.zeros(2, dtype=torch.long), torch.ones(2)
    small = objective.group_advantages(torch.tensor([0.0, 0.1]), groups, valid)
    torch.testing.assert_close(small, torch.tensor([-0.05, 0.05]))


def test_a_group_without_valid_members_and_a_single_member_have_no_advantage():
    rewards, groups = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0, 0, 1])
    assert objective.group_advantages(rewards, groups, torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]
    assert objective.group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0)).shape == (0,)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_valid_advantages_of_each_group_sum_to_zero(members):
    rewards = torch.tensor([m[0] for m in members], dtype=D)
    groups = torch.tensor([m[1] for m in members])
    valid = torch.tensor([m[2] for m in members])
    advantages = objective.group_advantages(rewards, groups, valid)
    assert advantages[~valid].abs().sum() == 0
    for group in range(4):
        assert abs(float(advantages[groups == group].sum())) < 1e-9


def test_unbiased_kl_by_hand():
    # pi = 1/2, pi_old = 1/4, pi_ref = 1/8: 2 * (1/4 - log(1/4) - 1) = 2 * (2 log 2 - 3/4)
    value = objective.unbiased_kl(rows(-LOG2), rows(-2 * LOG2), rows(-3 * LOG2))
    torch.testing.assert_close(value, rows(2 * (2 * LOG2 - 0.75)))


@given(st.floats(-6, 0), st.floats(-6, 0), st.floats(-6, 0))
def test_unbiased_kl_is_never_negative_and_zero_where_policy_is_the_reference(new, old, ref):
    assert float(objective.unbiased_kl(rows(new), rows(old), rows(ref))) >= 0
    assert float(objective.unbiased_kl(rows(new), rows(old), rows(new))) == 0


@given(st.integers(0, 1000))
def test_expected_kl_term_over_tokens_of_the_old_policy_has_value_and_gradient_of_the_true_kl(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, old, ref = (torch.randn(5, dtype=D, generator=generator) for _ in range(3))
    logits.requires_grad_()
    old, ref = old.log_softmax(0), ref.log_softmax(0)
    logp = logits.log_softmax(0)
    expected = (old.exp() * objective.unbiased_kl(logp, old, ref)).sum()
    true = (logp.exp() * (logp - ref)).sum()
    torch.testing.assert_close(expected, true)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (expected, true)))


def test_the_mask_drops_a_sequence_iff_its_advantage_is_negative_and_the_mean_log_ratio_exceeds_delta():
    old = rows([-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0])
    new = rows([-1.5, -1.25, -99], [-1.5, -1.25, -99], [-1.5, -1.5, -99], [-0.1, -0.1, -99])
    mask = torch.tensor([[1, 1, 0]]).expand(4, 3)
    advantages = rows(-1.0, 1.0, 0.0, -1.0)
    kept = objective.off_policy_sequence_mask(advantages, new, old, mask, 0.3)
    assert kept.tolist() == [0, 1, 1, 1]
    at_the_border = objective.off_policy_sequence_mask(advantages, new, old, mask, 0.375)
    assert at_the_border.tolist() == [1, 1, 1, 1]
    assert objective.off_policy_sequence_mask(advantages, new, old, mask, None).tolist() == [1, 1, 1, 1]


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_sequence_with_an_advantage_of_zero_or_more_is_never_dropped(seed, delta):
    generator = torch.Generator().manual_seed(seed)
    new, old = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    advantages, mask = torch.randn(6, generator=generator), torch.rand(6, 4, generator=generator) > 0.3
    kept = objective.off_policy_sequence_mask(advantages, new, old, mask, delta)
    assert (kept[advantages >= 0] == 1).all()


def test_loss_by_hand_with_both_signs_of_advantage_inside_and_outside_the_clip():
    # ratios 2, 1.1 | 0.5, 1, and a padded token that must not count.
    old = torch.zeros(2, 3, dtype=D)
    new = rows([math.log(2), math.log(1.1), 55.0], [math.log(0.5), 0.0, math.nan])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    loss, metrics = loss_of(new, old, rows(1.0, -1.0), mask)
    first, second = (1.2 + 1.1) / 2, (-0.8 - 1.0) / 2
    assert float(loss) == pytest.approx(-(first + second) / 2)
    assert metrics["clip_fraction"] == pytest.approx(2 / 4)
    assert metrics["ratio_mean"] == pytest.approx((2 + 1.1 + 0.5 + 1) / 4)
    assert metrics["ratio_max"] == pytest.approx(2)
    assert metrics["mean_log_ratio"] == pytest.approx(-math.log(2 * 1.1 * 0.5) / 4)
    assert metrics["mismatch"] == pytest.approx((LOG2 + math.log(1.1) + LOG2) / 4)
    assert metrics["tokens"] == 4


def test_clip_may_differ_above_and_below():
    old, mask = torch.zeros(2, 1, dtype=D), torch.ones(2, 1)
    loss, _ = loss_of(rows([LOG2], [-LOG2]), old, rows(1.0, -1.0), mask, clip=(0.1, 0.3))
    assert float(loss) == pytest.approx(-(1.3 - 0.9) / 2)


def test_each_sequence_weighs_the_same_whatever_its_length():
    old = torch.zeros(2, 4, dtype=D)
    new = torch.zeros(2, 4, dtype=D, requires_grad=True)
    loss, _ = loss_of(new, old, rows(1.0, 1.0), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]))
    loss.backward()
    torch.testing.assert_close(new.grad, -rows([0.125] * 4, [0.5, 0, 0, 0]))


def test_a_sequence_without_sampled_tokens_adds_nothing_and_no_nan():
    new = rows([0.0, 0.0], [math.nan, -math.inf]).requires_grad_()
    loss, metrics = loss_of(new, torch.zeros(2, 2, dtype=D), rows(1.0, -1.0), torch.tensor([[1, 1], [0, 0]]), delta=0.1)
    loss.backward()
    assert loss.item() == -0.5
    torch.testing.assert_close(new.grad, rows([-0.25, -0.25], [0, 0]))
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_off_policy_mask_multiplies_the_policy_term_and_not_the_kl():
    old, new, ref = rows([-1.0, -1.0]), rows([-3.0, -3.0]), rows([-1.0, -2.0])
    mask, advantages = torch.ones(1, 2), rows(-1.0)
    loss, metrics = loss_of(new, old, advantages, mask, ref=ref, beta=0.5, delta=0.1)
    kl = objective.unbiased_kl(new, old, ref).mean()
    assert float(loss) == pytest.approx(0.5 * float(kl))
    assert metrics["mask_fraction"] == 1
    assert metrics["kl"] == pytest.approx(float(kl))
    unmasked, _ = loss_of(new, old, advantages, mask, ref=ref, beta=0.5, delta=None)
    assert float(unmasked) == pytest.approx(0.8 + 0.5 * float(kl))


def test_gradient_of_the_loss_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    new, old, ref = (torch.randn(4, 5, dtype=D, generator=generator) * 0.3 for _ in range(3))
    mask = torch.rand(4, 5, generator=generator) > 0.3
    advantages = rows(1.0, -1.0, 0.5, -0.5)

    def scalar(x):
        return loss_of(x, old, advantages, mask, ref=ref, beta=0.3, delta=0.05)[0]

    assert torch.autograd.gradcheck(scalar, new.requires_grad_())


def test_on_policy_the_gradient_is_reinforce_even_when_the_same_tensor_is_given_as_old():
    new = rows([-1.0, -2.0]).requires_grad_()
    loss, _ = loss_of(new, new, rows(0.7), torch.ones(1, 2))
    loss.backward()
    torch.testing.assert_close(new.grad, rows([-0.35, -0.35]))


def test_a_kl_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="logp_ref is None"):
        loss_of(rows([0.0]), rows([0.0]), rows(1.0), torch.ones(1, 1), beta=0.1)


KEPT_IDS, KEPT_OFFSETS = torch.tensor([0, 2, 3, 1, 0, 1, 2, 3]), torch.tensor([0, 3, 4, 8])
TARGETS = torch.tensor([2, 1, 0])


def test_kept_log_probabilities_renormalise_over_the_recorded_set():
    logits = torch.log(rows([1, 50, 2, 1], [1, 1, 1, 1], [1, 2, 3, 4]))
    logp = objective.kept_log_probabilities(logits, TARGETS, KEPT_IDS, KEPT_OFFSETS, 1.0)
    torch.testing.assert_close(logp.exp(), rows(0.5, 1.0, 0.1))


def test_kept_log_probabilities_agree_with_a_softmax_over_masked_logits_and_with_finite_differences():
    logits = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(1)) * 3
    allowed = torch.zeros(3, 4, dtype=torch.bool)
    allowed[torch.repeat_interleave(torch.arange(3), KEPT_OFFSETS.diff()), KEPT_IDS] = True
    expected = (logits / 0.7).masked_fill(~allowed, -math.inf).log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]

    def kept(x):
        return objective.kept_log_probabilities(x, TARGETS, KEPT_IDS, KEPT_OFFSETS, 0.7)

    torch.testing.assert_close(kept(logits), expected)
    assert torch.autograd.gradcheck(kept, logits.requires_grad_())


def test_nothing_cut_is_the_plain_softmax_at_the_temperature():
    logits = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(2))
    plain = objective.kept_log_probabilities(logits, TARGETS, None, None, 2.0)
    everything = objective.kept_log_probabilities(
        logits, TARGETS, torch.arange(4).repeat(3), torch.tensor([0, 4, 8, 12]), 2.0
    )
    expected = (logits / 2).log_softmax(-1)[torch.arange(3), TARGETS]
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(everything, expected)


def test_large_logits_do_not_overflow_and_half_precision_is_lifted():
    logits = torch.tensor([[300.0, 299.0, -300.0]], dtype=torch.bfloat16)
    logp = objective.kept_log_probabilities(logits, torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([0, 2]), 1.0)
    assert logp.dtype == torch.float32
    assert logp.tolist() == [0.0]


def test_a_target_outside_its_kept_set_is_refused():
    with pytest.raises(ValueError, match="row 1 is not in its kept set"):
        objective.kept_log_probabilities(torch.zeros(3, 4), torch.tensor([2, 0, 0]), KEPT_IDS, KEPT_OFFSETS, 1.0)


def test_truncated_sampling_without_the_kept_set_biases_the_ratio_by_the_kept_mass():
    logits = torch.log(rows([0.4, 0.4, 0.15, 0.05]).expand(2, 4))
    targets, ids, offsets = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2, 4])
    sampled = objective.kept_log_probabilities(logits, targets, ids, offsets, 1.0)
    naive = objective.kept_log_probabilities(logits, targets, None, None, 1.0)
    torch.testing.assert_close((naive - sampled).exp(), rows(0.8, 0.8))


def test_entropy_by_hand_of_uniform_certain_and_cut_distributions():
    uniform = torch.zeros(4, dtype=D)
    assert float(objective.entropy(uniform)) == pytest.approx(math.log(4))
    cut = rows(0.0, 0.0, -math.inf, -math.inf).requires_grad_()
    value = objective.entropy(cut)
    assert value.item() == pytest.approx(LOG2)
    value.backward()
    assert torch.isfinite(cut.grad).all()
    logits = torch.randn(2, 3, 4, dtype=D, generator=torch.Generator().manual_seed(3)).requires_grad_()
    torch.testing.assert_close(objective.entropy(logits), torch.distributions.Categorical(logits=logits).entropy())
    assert torch.autograd.gradcheck(objective.entropy, logits)
