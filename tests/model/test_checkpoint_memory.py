"""A checkpoint costs no more memory than the model that it becomes: the peak is measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baleen.model.checkpoint import save_model
from tiny import tiny_model

SIZES = {
    "vocab_size": 16000,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
}
"""About 84 million parameters: 340 MB in fp32."""

SHARD = 40_000_000
CONSTANT = 16 << 20
"""Code that runs for the first time, and the pieces that are being read."""


@pytest.mark.parametrize(("fp8", "dtype"), [(False, "float32"), (True, "bfloat16")], ids=["bf16 files", "fp8 files"])
def test_loading_peaks_at_the_model_and_saving_at_one_file(fp8, dtype, tmp_path):
    save_model(tiny_model(**SIZES).to(torch.bfloat16), tmp_path / "m", fp8=fp8, max_shard_bytes=SHARD)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    command = [
        sys.executable,
        Path(__file__).with_name("peak.py"),
        tmp_path / "m",
        dtype,
        tmp_path / "again",
        fp8,
        SHARD,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=True)
    peak = json.loads(run.stdout)
    print(f"{dtype}: model {peak['model']:,}, load {peak['load']:,}, save {peak['save']:,}")
    assert peak["model"] > 140_000_000
    assert peak["load"] <= 1.1 * peak["model"] + CONSTANT
    assert peak["save"] <= SHARD + CONSTANT
