"""A dense MLA checkpoint becomes a sparse one: the same weights plus a fresh lightning indexer, ready for warm-up."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from baleen.model.checkpoint import TOKENIZER_FILES, load_model, save_model
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.network import Model


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    index_n_heads: int = 64,
    index_head_dim: int = 128,
    index_topk: int = 2048,
    seed: int = 0,
) -> None:
    """Writes `dst`, a `deepseek_v32` folder with the weights of the dense folder `src` and a random indexer.

    Raises `UnsupportedCheckpointError` when `src` is sparse already, `FileExistsError` when `dst` exists.
    """
    source_folder, target_folder = Path(src), Path(dst)
    if target_folder.exists():
        raise FileExistsError(f"{target_folder} exists; give a folder that does not")
    if ModelConfig.from_pretrained(source_folder).sparse:
        raise UnsupportedCheckpointError(
            f"{source_folder} has a lightning indexer already; there is nothing to convert"
        )
    source = load_model(source_folder, dtype=torch.float32)
    sizes = {"index_n_heads": index_n_heads, "index_head_dim": index_head_dim, "index_topk": index_topk}
    fields = source.config.model_dump() | sizes | {"model_type": "deepseek_v32"}
    model = Model(ModelConfig(**fields))
    model.initialise(seed)
    model.load_state_dict(source.state_dict(), strict=False)
    has_tokenizer = all((source_folder / file).is_file() for file in TOKENIZER_FILES)
    try:
        save_model(model, target_folder, tokenizer=source_folder if has_tokenizer else None)
    except OSError:
        shutil.rmtree(target_folder.with_name(target_folder.name + ".partial"), ignore_errors=True)
        raise
