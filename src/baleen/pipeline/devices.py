"""What a network takes of each device's memory, for training and for serving, and how many devices would do.

Training: bf16 weights, fp32 gradients and master weights, and the optimiser's fp32 moments, all sharded evenly over
the devices (FSDP2; experts divided among them, expert parallelism, and never gathered). Each device further holds what
is gathered while it computes, and the activations of its tokens with every layer recomputed in the backward pass.

Serving: routed experts divided among the devices (whole experts of every layer), everything else whole on each, and a
sequence's cache on one device: expert parallelism with data-parallel attention, because MLA's one latent per token
would be repeated on every device that shares its heads. (DeepSeek-V3's own deployment, section 3.4 of its report, adds
a little tensor parallelism.)
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from baleen.model.arithmetic import (
    ROOT,
    Precision,
    Weight,
    activation_bytes_per_token,
    cache_bytes_per_token,
    weights,
)
from baleen.model.config import ModelConfig

OptimizerName = Literal["AdamW", "Muon"]

MIB, GIB = 1 << 20, 1 << 30

DEVICE_BYTES = {
    "A100": 81_920 * MIB,
    "H100": 81_559 * MIB,
    "H800": 81_559 * MIB,
    "H20": 97_871 * MIB,
    "H200": 143_771 * MIB,
    "B200": 183_359 * MIB,
    "RTX4090": 24_564 * MIB,
}
"""Memory as the driver reports it (A100: the 80 GB model)."""

DEFAULT_DEVICE = "H100"
USABLE = 0.9
"""Share of a device's memory that the plan hands out; context, kernels' workspaces, communication buffers and
fragmentation take the rest."""

UNITS = {"GB": 10**9, "GiB": GIB}

NOT_FOR_MUON = ("embed_tokens", "lm_head", "gate.weight", "weights_proj")
"""Matrices that take AdamW beside Muon: `training/optimizer.py` (`NOT_MATRICES`) without loading torch."""


class DevicesError(ValueError):
    """The `--devices` text is not understood; the message lists what is accepted."""


@dataclass(frozen=True)
class Devices:
    """`count` equal devices of `bytes_each` memory."""

    count: int
    name: str
    bytes_each: int

    @property
    def usable(self) -> int:
        """Bytes of each device that weights, states, activations and cache may take."""
        return int(USABLE * self.bytes_each)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per device while training."""

    weights: int
    gradients: int
    master_weights: int
    moments: int
    gathered: int
    activations: int
    tokens_that_fit: int
    """Tokens per device whose activations the rest would hold."""

    fits: bool
    devices_needed: int | None
    """Smallest number of such devices; None when no number is enough."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum((self.weights, self.gradients, self.master_weights, self.moments, self.gathered, self.activations))


@dataclass(frozen=True)
class ServingMemory:
    """Bytes per device while serving."""

    whole: int
    """Weights that every device holds whole."""

    experts: int
    """This device's share of the routed experts."""

    left: int
    """For the cache; 0 when the weights alone do not fit."""

    sequence: int
    """Cache of one sequence."""

    devices_needed: int | None
    """Smallest number of such devices that hold the weights and a sequence each; None when no number is enough."""

    @property
    def sequences(self) -> int:
        """Sequences whose cache fits on one device."""
        return self.left // self.sequence

    @property
    def fits(self) -> bool:
        """Whether there is room for at least one sequence."""
        return self.sequences > 0


def parse_devices(text: str) -> Devices:
    """`64xH100`, `2x80GB`, `1x16GiB`, or a count alone for H100s. Raises `DevicesError` listing what is accepted."""
    match = re.fullmatch(r"(\d+)(?:\s*[xX×]\s*(\S+))?", text.strip())
    if match is None or int(match[1]) == 0:
        raise DevicesError(f"--devices {text!r} is not COUNTxDEVICE with a count of at least 1. {_accepted()}")
    count, device = int(match[1]), match[2] or DEFAULT_DEVICE
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)(GI?B)", device, re.IGNORECASE)
    if amount is not None:
        unit = "GB" if len(amount[2]) == 2 else "GiB"
        size = int(float(amount[1]) * UNITS[unit])
        if size == 0:
            raise DevicesError(f"--devices {text!r}: a device needs memory. {_accepted()}")
        return Devices(count, f"{amount[1]} {unit}", size)
    name = device.upper()
    if name not in DEVICE_BYTES:
        close = difflib.get_close_matches(name, DEVICE_BYTES, n=1, cutoff=0.7)
        hint = f"; did you mean {count}x{close[0]}?" if close else "."
        raise DevicesError(f"--devices {text!r}: no device {device!r} is known here{hint} {_accepted()}")
    return Devices(count, name, DEVICE_BYTES[name])


def training_memory(config: ModelConfig, devices: Devices, optimizer: OptimizerName, tokens: int) -> TrainingMemory:
    """Memory of each device that trains on `tokens` tokens per forward pass."""
    found = weights(config)
    parameters = sum(weight.parameters for weight in found)
    one_moment = sum(weight.parameters for weight in found if optimizer == "Muon" and takes_muon(weight))
    moments = 4 * one_moment + 8 * (parameters - one_moment)
    kept, working = activation_bytes_per_token(config)
    gathered = _gathered_bytes(found) if devices.count > 1 else 0
    room = devices.usable - _gathered_bytes(found) - tokens * (kept + working)
    state = (2 + 4 + 4) * parameters + moments
    alone = state + tokens * (kept + working) <= devices.usable
    needed = 1 if alone else max(2, math.ceil(state / room)) if room > 0 else None
    share = math.ceil(state / devices.count)
    return TrainingMemory(
        weights=math.ceil(2 * parameters / devices.count),
        gradients=math.ceil(4 * parameters / devices.count),
        master_weights=math.ceil(4 * parameters / devices.count),
        moments=math.ceil(moments / devices.count),
        gathered=gathered,
        activations=tokens * (kept + working),
        tokens_that_fit=max(0, devices.usable - share - gathered) // (kept + working),
        fits=share + gathered + tokens * (kept + working) <= devices.usable,
        devices_needed=needed,
    )


def serving_memory(config: ModelConfig, devices: Devices, precision: Precision, context: int) -> ServingMemory:
    """Memory of each device that serves sequences of `context` tokens, weights and cache in `precision`."""
    found = weights(config)
    whole = sum(weight.bytes(precision) for weight in found if not weight.is_expert)
    expert = sum(weight.bytes(precision) // weight.copies for weight in found if weight.is_expert)
    sequence = context * cache_bytes_per_token(config, precision)

    def share(count: int) -> int:
        return expert * math.ceil(config.n_routed_experts / count)

    fitting = (
        count for count in range(1, config.n_routed_experts + 1) if whole + share(count) + sequence <= devices.usable
    )
    return ServingMemory(
        whole=whole,
        experts=share(devices.count),
        left=max(0, devices.usable - whole - share(devices.count)),
        sequence=sequence,
        devices_needed=next(fitting, None),
    )


def takes_muon(weight: Weight) -> bool:
    """Whether `training/optimizer.py` gives the weight to Muon, which keeps one moment instead of AdamW's two."""
    return weight.inputs > 1 and not any(part in weight.name for part in NOT_FOR_MUON)


def _gathered_bytes(found: list[Weight]) -> int:
    """Embedding and head, the layer at work, the next one on its way, and the first one's gradients, bf16 each."""
    layers: dict[int, int] = {}
    for weight in found:
        if not weight.is_expert:
            layers[weight.layer] = layers.get(weight.layer, 0) + weight.parameters
    root = layers.pop(ROOT)
    return 2 * root + 3 * 2 * max(layers.values())


def _accepted() -> str:
    names = ", ".join(DEVICE_BYTES)
    return (
        f"Accepted: COUNTxNAME with a name of {names}; COUNTxMEMORY such as 2x80GB or 1x16GiB; "
        f"or COUNT alone for {DEFAULT_DEVICE}s"
    )
