"""Run by tests in a process of its own: the memory that loading a folder takes at its peak, and saving it again.

python peak.py FOLDER DTYPE TARGET FP8 MAX_SHARD_BYTES -> {"model", "load", "save"} in bytes, as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from baleen.model.checkpoint import load_model, save_model


def memory(field: str) -> int:
    """A line of /proc/self/status in bytes: `VmRSS` is now, `VmHWM` the peak since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def start() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    return memory("VmRSS")


def main() -> None:
    folder, dtype, target, fp8, max_shard_bytes = sys.argv[1:]
    before = start()
    model = load_model(folder, getattr(torch, dtype))
    load = memory("VmHWM") - before
    before = start()
    save_model(model, target, fp8=fp8 == "True", max_shard_bytes=int(max_shard_bytes))
    save = memory("VmHWM") - before
    size = sum(parameter.nbytes for parameter in model.parameters())
    print(json.dumps({"model": size, "load": load, "save": save}))


if __name__ == "__main__":
    main()
