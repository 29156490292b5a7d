"""However samples are laid out, the loss is that of each sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baleen.training.batch import text_batch, tree_batch
from baleen.training.losses import Objective, batch_loss
from baleen.training.packing import pack_tree
from baleen.training.sample import plain_sample
from tiny import tiny_model

DENSE, SPARSE = Objective(sparse=False), Objective(sparse=True)


def pair(lengths=(9, 9), shared=20):
    """Two samples that share their prompt and, as one of them, sample as many tokens as `lengths` say."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 120, shared).tolist()
    samples = []
    for place, count in enumerate(lengths):
        tail = [place, *rng.integers(0, 120, count - 1).tolist()]
        samples.append(plain_sample(prompt + tail, [False] * shared + [True] * count))
    return samples


def loss_and_gradient(model, batch, objective):
    model.zero_grad(set_to_none=True)
    total = batch_loss(model, batch, objective).total
    total.backward()
    return total.detach(), model.layers[0].self_attn.q_a_proj.weight.grad.clone()


@pytest.mark.parametrize("objective", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_two_samples_in_one_row_cost_the_mean_of_their_own_rows(objective):
    model, samples = tiny_model(), pair()
    (row,) = pack_tree(samples, 100)
    assert len(row.tokens) == 20 + 9 + 9
    together = loss_and_gradient(model, tree_batch([row], samples), objective)
    alone = [loss_and_gradient(model, tree_batch(pack_tree([s], 100), [s]), objective) for s in samples]
    for packed, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(packed, sum(parts) / 2, atol=1e-5, rtol=1e-4)


def test_longer_samples_weigh_by_their_tokens():
    model, samples = tiny_model(), pair((12, 4))
    (row,) = pack_tree(samples, 100)
    together = batch_loss(model, tree_batch([row], samples), DENSE).total
    alone = [batch_loss(model, tree_batch(pack_tree([s], 100), [s]), DENSE).total for s in samples]
    torch.testing.assert_close(together, (12 * alone[0] + 4 * alone[1]) / 16, atol=1e-5, rtol=0)


def test_a_tree_of_one_sample_that_is_all_sampled_is_a_text_row():
    model = tiny_model()
    tokens = np.random.default_rng(1).integers(0, 120, 30)
    sample = plain_sample(tokens.tolist(), [False] + [True] * 29)
    tree = batch_loss(model, tree_batch(pack_tree([sample], 64), [sample]), SPARSE).total
    torch.testing.assert_close(tree, batch_loss(model, text_batch(tokens[None]), SPARSE).total, atol=1e-5, rtol=0)


def test_padding_to_the_longest_row_changes_nothing():
    model, samples = tiny_model(), pair((15, 4), shared=3)
    rows = pack_tree(samples, 18)
    assert sorted(len(row.tokens) for row in rows) == [7, 18]
    together = loss_and_gradient(model, tree_batch(rows, samples), SPARSE)
    apart = [loss_and_gradient(model, tree_batch([row], samples), SPARSE) for row in rows]
    shares = [samples[row.samples[0]].sampled.sum() / 19 for row in rows]
    for packed, parts in zip(together, zip(*apart, strict=True), strict=True):
        expected = sum(part * float(share) for part, share in zip(parts, shares, strict=True))
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


def test_a_text_batch_predicts_every_following_token():
    rows = np.arange(10).reshape(2, 5)
    batch = text_batch(rows)
    assert batch.source.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert batch.target.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    assert batch.token_count == 10


def test_the_second_token_s_loss_is_the_mtp_head_s():
    model = tiny_model()
    tokens = np.random.default_rng(2).integers(0, 120, (2, 20))
    loss = batch_loss(model, text_batch(tokens), Objective(sparse=False, mtp_weight=0.5))
    ids = torch.from_numpy(tokens)
    out = model(ids, sparse=False)
    hidden, _ = model.predict_second(out.hidden, torch.roll(ids, -1, 1), model.context((2, 20), sparse=False))
    logp = model.lm_head(hidden[:, :-2]).log_softmax(-1).gather(-1, ids[:, 2:, None])
    assert loss.figures["mtp_loss"] == pytest.approx(-float(logp.detach().mean()), abs=1e-5)
    assert float(loss.total.detach()) == pytest.approx(loss.figures["loss"] + 0.5 * loss.figures["mtp_loss"], abs=1e-5)
