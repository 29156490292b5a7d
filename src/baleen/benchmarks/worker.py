"""The process of one measurement: `python -m baleen.benchmarks.worker '{"measure": NAME, ...}'` prints one JSON line.

A process of its own gives each measurement its own peak memory, its own allocator and no neighbour's caches. It ends
with the process that asked: what went on measuring for nobody would slow down whatever is measured next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when its parent ends (prctl(2))."""

MEASURES = {
    "machine": ("ours", "machine"),
    "prefill": ("ours", "prefill_cost"),
    "decode": ("ours", "decode_cost"),
    "train": ("ours", "training_cost"),
    "pretrain": ("ours", "pretraining_rate"),
    "peer_choice": ("peer", "fastest_form"),
    "peer_prefill": ("peer", "prefill_cost"),
    "peer_pretrain": ("peer", "pretraining_rate"),
    "serve_throughput": ("serve_load", "throughput"),
    "serve_prefix": ("serve_load", "prefix"),
    "serve_beside": ("serve_load", "beside"),
    "serve_soak": ("serve_soak", "soak"),
    "serve_alone": ("serve_engine", "alone"),
    "serve_drafts": ("serve_engine", "drafted"),
    "serve_traces": ("serve_engine", "traced"),
    "serve_peer": ("serve_peer", "generated"),
    "agent_sandbox": ("agent", "sandbox"),
    "agent_context": ("agent", "context"),
    "agent_tau2": ("agent", "tau2"),
}
"""Module and function by name; imported when asked for, as the imports take a second in which the parent may end."""


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Does the measurement that the task names; its other entries are the measurement's arguments."""
    arguments = dict(task)
    module, function = MEASURES[arguments.pop("measure")]
    measured: dict[str, Any] = getattr(import_module(f"baleen.benchmarks.{module}"), function)(**arguments)
    return measured


def end_with_parent() -> None:
    """Has this process killed when the one that started it ends."""
    with contextlib.suppress(AttributeError, OSError):  # systems without prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(main(json.loads(sys.argv[1]))))
