"""Devices as people write them, and what a network takes of each: bounds that hold exactly at the stated number."""

from dataclasses import replace

import pytest

import tiny
from baleen.model.arithmetic import cache_bytes_per_token, count_parameters, weights
from baleen.model.config import ModelConfig
from baleen.pipeline.devices import (
    DEVICE_BYTES,
    GIB,
    NOT_FOR_MUON,
    Devices,
    DevicesError,
    parse_devices,
    serving_memory,
    takes_muon,
    training_memory,
)

V32 = ModelConfig()


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("64xH100", Devices(64, "H100", DEVICE_BYTES["H100"])),
        ("64", Devices(64, "H100", DEVICE_BYTES["H100"])),
        ("8 x h200", Devices(8, "H200", DEVICE_BYTES["H200"])),
        ("2x80GB", Devices(2, "80 GB", 80 * 10**9)),
        ("2×80gb", Devices(2, "80 GB", 80 * 10**9)),
        ("1x1.5gib", Devices(1, "1.5 GiB", 3 * GIB // 2)),
    ],
)
def test_devices_are_a_count_and_a_name_or_a_memory(text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    "text", ["", "H100", "0xH100", "-1xH100", "2x", "2xTPU", "2x80", "2x80MB", "2x0GB", "8xH100x2"]
)
def test_other_devices_are_answered_with_what_is_accepted(text):
    with pytest.raises(DevicesError) as raised:
        parse_devices(text)
    for part in ("COUNTxNAME", "H200", "2x80GB", "1x16GiB"):
        assert part in str(raised.value)


def test_a_misspelt_device_is_answered_with_the_nearest():
    with pytest.raises(DevicesError, match="did you mean 4xB200"):
        parse_devices("4xB2000")


def test_muon_takes_the_matrices_that_the_optimiser_gives_it():
    from baleen.training.optimizer import NOT_MATRICES, Optimizer

    model = tiny.tiny_model()
    taken = sum(weight.parameters for weight in weights(model.config) if takes_muon(weight))
    assert taken == sum(matrix.numel() for matrix in Optimizer(model.named_parameters()).matrices)
    assert NOT_FOR_MUON == NOT_MATRICES


def test_a_parameter_takes_18_bytes_with_adamw_and_its_share_of_the_devices():
    parameters = count_parameters(V32).total
    for count in (1, 64, 1000):
        memory = training_memory(V32, Devices(count, "", 80 * GIB), "AdamW", 4096)
        states = memory.weights + memory.gradients + memory.master_weights + memory.moments
        assert states == pytest.approx(18 * parameters / count)
        assert memory.total == states + memory.gathered + memory.activations
        assert (memory.gathered > 0) == (count > 1)
    muon = training_memory(V32, Devices(64, "", 80 * GIB), "Muon", 4096)
    assert 14 * parameters / 64 < muon.total - muon.gathered - muon.activations < 14.1 * parameters / 64


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
@pytest.mark.parametrize("size", [24, 80, 141])
def test_the_number_of_devices_that_trains_is_the_smallest(optimizer, size):
    few = Devices(2, "", size * GIB)
    needed = training_memory(V32, few, optimizer, 2048).devices_needed
    assert needed is not None
    assert training_memory(V32, replace(few, count=needed), optimizer, 2048).fits
    assert not training_memory(V32, replace(few, count=needed - 1), optimizer, 2048).fits


def test_activations_that_fill_a_device_fit_no_number_of_them():
    memory = training_memory(V32, Devices(10_000, "", 80 * GIB), "Muon", 131_072)
    assert not memory.fits
    assert memory.devices_needed is None


def test_the_tokens_that_fit_do_and_one_more_does_not():
    devices = Devices(512, "", 80 * GIB)
    most = training_memory(V32, devices, "AdamW", 1).tokens_that_fit
    assert training_memory(V32, devices, "AdamW", most).fits
    assert not training_memory(V32, devices, "AdamW", most + 1).fits


def test_a_small_network_trains_on_one_device():
    memory = training_memory(ModelConfig(**tiny.TINY), Devices(1, "", GIB), "AdamW", 64)
    assert (memory.fits, memory.devices_needed) == (True, 1)


def test_eight_h200_serve_the_fp8_network_and_not_the_bf16_one():
    devices = parse_devices("8xH200")
    quantised, plain = (serving_memory(V32, devices, each, 131_072) for each in ("fp8", "bf16"))
    assert quantised.fits
    assert not plain.fits
    assert plain.left == plain.sequences == 0
    assert quantised.sequence == 131_072 * cache_bytes_per_token(V32, "fp8")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("size", [80, 141])
def test_the_number_of_devices_that_serves_is_the_smallest(precision, size):
    few = Devices(1, "", size * GIB)
    needed = serving_memory(V32, few, precision, 32_768).devices_needed
    assert needed is not None
    assert serving_memory(V32, replace(few, count=needed), precision, 32_768).fits
    assert not serving_memory(V32, replace(few, count=needed - 1), precision, 32_768).fits


def test_what_each_device_holds_whole_bounds_serving():
    """Every device holds attention, embedding and head: no number of 24 GiB cards serves them in bf16."""
    memory = serving_memory(V32, Devices(10_000, "", 24 * GIB), "bf16", 4096)
    assert not memory.fits
    assert memory.devices_needed is None


def test_one_device_holds_all_the_weights():
    memory = serving_memory(V32, Devices(1, "", 2_000 * GIB), "bf16", 4096)
    assert memory.whole + memory.experts == 2 * count_parameters(V32).total
