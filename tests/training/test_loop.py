"""Training that is interrupted anywhere ends with the bits of the training that was not, and it does learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baleen.model.moe import MoE
from baleen.training.batch import text_batch
from baleen.training.loop import Schedule, balance_experts, train
from baleen.training.losses import Objective
from baleen.training.records import MetricsLog
from tiny import tiny_model

COURSE = Schedule(steps=8, learning_rate=3e-3, warmup_steps=2, checkpoint_every=3)


class Killed(Exception):
    """What a test's report raises in place of a kill."""


class Report:
    """Counts the steps, and raises after a given one."""

    def __init__(self, killed_after=None):
        self.killed_after = killed_after
        self.steps = []

    def update(self, done, total, **figures):
        self.steps.append(done)
        if done == self.killed_after:
            raise Killed


def batches(step):
    """Two batches a step, by the step's number alone: a few words that repeat, so that there is something to learn."""
    generator = np.random.default_rng(step)
    words = np.arange(24).reshape(6, 4) + 10
    return [text_batch(words[generator.integers(0, 6, (2, 6))].reshape(2, 24)) for _ in range(2)]


STAGES = {
    "pretrain": Objective(sparse=False, mtp_weight=0.3),
    "warm-up": Objective(sparse=False, indexer_loss="dense", language_model=False),
    "sparse": Objective(sparse=True, indexer_loss="selected", indexer_stride=2),
}


def fresh(objective):
    model = tiny_model()
    if not objective.language_model:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".indexer." in name and not name.startswith("mtp."))
    return model


def folder(tmp_path, name):
    made = tmp_path / name
    made.mkdir()
    return made


def rows(folder):
    kept = list(MetricsLog(folder / "metrics.jsonl"))
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in kept]


@pytest.mark.parametrize("objective", STAGES.values(), ids=STAGES.keys())
def test_killed_twice_it_ends_with_the_same_bits_and_the_same_log(objective, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    expected = fresh(objective)
    summary = train(expected, batches, objective, COURSE, whole, Report())
    for after in (4, 6, 2):  # past a checkpoint, on a checkpoint, never reached again
        attempt = Report(after)
        try:
            train(fresh(objective), batches, objective, COURSE, killed, attempt)
        except Killed:
            assert attempt.steps[-1] == after
    resumed = fresh(objective)
    last = Report()
    again = train(resumed, batches, objective, COURSE, killed, last)
    assert last.steps == []  # the third attempt had ended it
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert rows(whole) == rows(killed)
    assert [row["step"] for row in rows(whole)] == list(range(1, 9))
    assert again["tokens"] == summary["tokens"] == 8 * 2 * 48


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
    objective = STAGES["sparse"]
    with pytest.raises(Killed):
        train(fresh(objective), batches, objective, COURSE, tmp_path, Report(4))
    (tmp_path / "checkpoint.pt.partial").write_bytes(b"half")
    last = Report()
    train(fresh(objective), batches, objective, COURSE, tmp_path, last)
    assert last.steps == [4, 5, 6, 7, 8]


def test_the_loss_falls(tmp_path):
    model = tiny_model()
    train(model, batches, Objective(sparse=True), Schedule(30, 1e-2, 3, 100), tmp_path, Report())
    losses = [row["loss"] for row in MetricsLog(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_the_warm_up_brings_the_indexer_to_the_attention_and_moves_nothing_else(tmp_path):
    objective = STAGES["warm-up"]
    model = fresh(objective)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, batches, objective, Schedule(30, 1e-2, 3, 100), tmp_path, Report())
    kls = [row["kl"] for row in MetricsLog(tmp_path / "metrics.jsonl")]
    assert kls[-1] < 0.8 * kls[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".indexer." in name for name in moved)


def test_a_step_is_the_mean_over_its_predictions_however_batches_cut_it(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 120, (6, 16))
    course = Schedule(steps=1, learning_rate=1e-2, warmup_steps=0)
    losses, weights = [], []
    for name, cuts in (("whole", (6,)), ("cut", (1, 5))):
        model = tiny_model()
        made = [text_batch(part) for part in np.split(tokens, np.cumsum(cuts)[:-1])]
        row = train(model, lambda _, made=made: made, Objective(sparse=False), course, folder(tmp_path, name), Report())
        losses.append(row["loss"])
        weights.append(model.layers[0].self_attn.o_proj.weight.detach())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=0)


def test_a_measure_is_taken_at_checkpoints(tmp_path):
    train(tiny_model(), batches, STAGES["sparse"], COURSE, tmp_path, Report(), lambda: {"validation_loss": 1.5})
    measured = [row["step"] for row in MetricsLog(tmp_path / "metrics.jsonl") if "validation_loss" in row]
    assert measured == [3, 6, 8]


def test_balancing_raises_the_underloaded_lowers_the_overloaded_and_leaves_the_even():
    model = tiny_model()
    gates = [module.gate for module in model.layers.modules() if isinstance(module, MoE)]
    before = [gate.e_score_correction_bias.clone() for gate in gates]
    load = torch.tensor([0, 20, 10, 10, 10, 10, 10, 10])
    worst = balance_experts(model, [load] * len(gates), speed=0.01)
    assert worst == pytest.approx(2.0)
    expected = torch.tensor([0.01, -0.01, 0, 0, 0, 0, 0, 0])
    for gate, start in zip(gates, before, strict=True):
        torch.testing.assert_close(gate.e_score_correction_bias - start, expected, atol=1e-6, rtol=0)


def test_balancing_evens_the_load_of_a_gate_that_prefers_one_expert():
    model = tiny_model(n_group=1, topk_group=1)
    ids = torch.randint(0, 120, (4, 32), generator=torch.Generator().manual_seed(0))
    gate = model.layers[2].mlp.gate
    with torch.no_grad():
        gate.e_score_correction_bias[3] += 0.5

    def loads():
        with torch.no_grad():
            return [torch.bincount(chosen.flatten(), minlength=8) for chosen in model(ids, logits=False).experts]

    first = balance_experts(model, loads(), speed=0.02)
    for _ in range(60):
        last = balance_experts(model, loads(), speed=0.02)
    assert first > 3.0
    assert last < 1.6
