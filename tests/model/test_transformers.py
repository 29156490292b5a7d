"""A checkpoint of ours is read by transformers' own DeepSeek-V3.2, and says the same there."""

from __future__ import annotations

import pytest
import torch

from baleen.model.checkpoint import load_model, save_model
from tiny import tiny_model

YARN = {
    "rope_type": "yarn",
    "factor": 4,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain rope", "yarn"])
def test_transformers_gives_the_same_logits(scaling, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_model(tiny_model(rope_scaling=scaling), tmp_path / "m")
    theirs, info = transformers.DeepseekV32ForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    # Longer than index_topk, so that the selection decides.
    ids = torch.randint(0, 120, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_model(tmp_path / "m")
        difference = ours(ids).logits - theirs(ids).logits
        dense = ours(ids, sparse=False).logits - theirs(ids).logits
    assert difference.abs().max() < 1e-4
    assert dense.abs().max() > 1e-2
