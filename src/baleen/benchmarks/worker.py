"""The process of one measurement: `python -m baleen.benchmarks.worker '{"measure": NAME, ...}'` prints one JSON line.

A process of its own gives each measurement its own peak memory, its own allocator and no neighbour's caches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from baleen.benchmarks import ours, peer

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": ours.machine,
    "prefill": ours.prefill_cost,
    "decode": ours.decode_cost,
    "train": ours.training_cost,
    "pretrain": ours.pretraining_rate,
    "peer_choice": peer.fastest_form,
    "peer_prefill": peer.prefill_cost,
    "peer_pretrain": peer.pretraining_rate,
}


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Does the measurement that the task names; its other entries are the measurement's arguments."""
    arguments = dict(task)
    return MEASURES[arguments.pop("measure")](**arguments)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
