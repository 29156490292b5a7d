"""Checkpoints in and out: Hugging Face folders of `deepseek_v32` (and dense `deepseek_v3` to convert from).

Tensor names are the published ones: experts stand one by one in the file and joined in memory; the MTP layer is
stored as layer `num_hidden_layers`. A folder is written under a temporary name and renamed, so it is whole or absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.network import Model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class CheckpointError(ValueError):
    """A tensor is missing, unexpected or of the wrong shape, or a file cannot be read."""


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """The model of a folder with parameters in `dtype`. Raises `CheckpointError` naming the tensor and the file."""
    folder = Path(path)
    config = ModelConfig.from_pretrained(folder)
    tensors, origin = _read_tensors(folder)
    if not any(name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in tensors):
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
    model = Model(config)
    with torch.no_grad():
        for name, parameter in _state(model).items():
            for part_name, part in _published(name, parameter, config):
                if part_name not in tensors:
                    raise CheckpointError(f"{folder}: tensor {part_name} is missing")
                value = tensors.pop(part_name)
                if value.shape != part.shape:
                    where = origin[part_name]
                    raise CheckpointError(f"{where}: {part_name} has shape {list(value.shape)}, not {list(part.shape)}")
                part.copy_(value)
    shared = (f"model.layers.{config.num_hidden_layers}.embed_tokens", "shared_head.head.weight")
    unexpected = [name for name in tensors if not (name.startswith(shared[0]) or name.endswith(shared[1]))]
    if unexpected:
        raise CheckpointError(f"{origin[unexpected[0]]}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all)")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def save_model(model: Model, path: str | Path, *, tokenizer: str | Path | None = None) -> None:
    """Writes the folder: config, weights in the parameters' dtype, generation defaults, and a copy of the tokenizer."""
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors: dict[str, Tensor] = {}
    for name, parameter in _state(model).items():
        for part_name, part in _published(name, parameter, model.config):
            tensors[part_name] = part.detach().clone().contiguous()
    if model.mtp is not None:
        prefix = f"model.layers.{model.config.num_hidden_layers}"
        tensors[f"{prefix}.embed_tokens.weight"] = model.embed_tokens.weight.detach().clone()
        tensors[f"{prefix}.shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_json() | {"torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch.")}
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"temperature": 1.0, "top_p": 0.95, "do_sample": True}
    generation |= {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
    (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in TOKENIZER_FILES if tokenizer is not None else ():
        shutil.copyfile(Path(tokenizer) / file, partial / file)  # type: ignore[arg-type]
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _state(model: Model) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if value is not None}


def _published(name: str, parameter: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The published names of one of our parameters, with the views of it that they hold."""
    if name.startswith("mtp."):
        layer = f"model.layers.{config.num_hidden_layers}."
        name = name.removeprefix("mtp.")
        name = layer + ("shared_head." + name if name.startswith("norm.") else name.removeprefix("layer."))
    elif not name.startswith("lm_head."):
        name = "model." + name
    if ".experts." not in name:
        yield name, parameter
        return
    prefix, kind = name.rsplit(".", 1)
    for expert in range(config.n_routed_experts):
        if kind == "down_proj":
            yield f"{prefix}.{expert}.down_proj.weight", parameter[expert]
        else:
            gate, up = parameter[expert].chunk(2)
            yield f"{prefix}.{expert}.gate_proj.weight", gate
            yield f"{prefix}.{expert}.up_proj.weight", up


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedCheckpointError(f"{folder} has no .safetensors file")
    tensors: dict[str, Tensor] = {}
    origin: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    tensors[name], origin[name] = shard.get_tensor(name), file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); is it truncated? copy it again") from error
    return tensors, origin
