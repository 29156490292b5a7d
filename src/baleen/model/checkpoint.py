"""Checkpoints in and out: Hugging Face folders under the published tensor names, in fp32, bf16 or FP8 blocks.

Loading checks every name, shape and dtype against `config.json` from the headers alone. Then the parameters are made
once, in their final dtype, and filled a piece at a time, so that the peak is the model itself. A folder is written
under another name and renamed when it is complete: whatever happens, the old one or the new one is there whole (the
old one as `<name>.old`, should the process be killed between two renames).

FP8 folders are DeepSeek's: the linear weights of attention, feed-forward and experts in e4m3 with `weight_scale_inv`
(`ops/fp8.py`); embeddings, head, norms, gate, `indexer.weights_proj` and `eh_proj` stay as they are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.model.fields import existence_fields, shape_fields
from baleen.model.layers import multiplies_natively
from baleen.model.names import is_left_out, published, second_prediction
from baleen.model.network import Model
from baleen.model.shards import INDEX, SINGLE, CheckpointError, Parcel, StoredTensor, stored_tensors, write_shards
from baleen.ops.fp8 import BLOCK, FP8, block_shape, dequantise_blocks, quantise_blocks

__all__ = ["TOKENIZER_FILES", "CheckpointError", "load_model", "save_model"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

MAX_SHARD_BYTES = 5_000_000_000
"""Where a checkpoint is cut into several files; the published ones are cut here too."""

SCALE = "_scale_inv"
"""An FP8 weight's scales are stored under its name and this."""

QUANTIZATION_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [BLOCK, BLOCK],
}
"""The field `quantization_config` of the published `config.json`."""

QUANTISED = re.compile(
    r"\.(self_attn|mlp)\.(.+\.)?(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|wq_b|wk"
    r"|gate_proj|up_proj|down_proj)\.weight$"
)
"""The weights that DeepSeek's FP8 checkpoints quantise."""


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """The model of a folder, with parameters in `dtype` (fp32 or bf16; the gate's bias is always fp32).

    FP8 weights are multiplied by their scales. bf16 weights are computed with in fp32 on a processor without bf16
    instructions (`Model.set_compute_dtype`). A folder without the tensors of the multi-token-prediction layer gives a
    model without one. At its peak this takes the model's own bytes and a few megabytes. Raises `CheckpointError` naming
    the tensor and the file, `UnsupportedCheckpointError` for a folder of another kind, `ValueError` for another dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"parameters can be torch.float32 or torch.bfloat16, not {dtype}")
    folder = Path(path)
    config = ModelConfig.from_pretrained(folder)
    _check_quantisation(folder / "config.json")
    stored = stored_tensors(folder)
    if not any(name.startswith(second_prediction(config)) for name in stored):
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
    with _WithoutMemory():
        model = Model(config)
    _check(model, stored, folder)
    _allocate(model, dtype)
    _fill(model, stored)
    return model if multiplies_natively(dtype) else model.set_compute_dtype(torch.float32)


def reload_model(model: Model, path: str | Path) -> None:
    """Reads other weights of the same network into `model`, in place: whoever holds it goes on with the new ones.

    Nothing is changed when the folder does not fit. Raises as `load_model`, and `CheckpointError` for another network.
    """
    folder = Path(path)
    config = ModelConfig.from_pretrained(folder)
    if config.model_copy(update={"num_nextn_predict_layers": model.config.num_nextn_predict_layers}) != model.config:
        raise CheckpointError(f"{folder} holds another network than the one that is loaded: serve it anew")
    _check_quantisation(folder / "config.json")
    stored = stored_tensors(folder)
    _check(model, stored, folder)
    _fill(model, stored)


@torch.no_grad()
def _fill(model: Model, stored: dict[str, StoredTensor]) -> None:
    for name, part in _parts(model):  # all that `_allocate` made: a buffer that is not stored was made by `Model`
        _read_into(part, stored[name], stored.get(name + SCALE))


def save_model(
    model: Model,
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    fp8: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the folder: config, weights, generation defaults, and a copy of the tokenizer's files.

    Weights keep the parameters' dtype; with `fp8` the linear ones become e4m3 blocks with ue8m0 scales. More than
    `max_shard_bytes` are cut into several files with an index. A model folder that stands there is replaced when the
    new one is complete; after a failure it is as it was. Raises `CheckpointError` when something else stands there or a
    weight cannot be quantised, `OSError` from the disk.
    """
    folder = Path(path).resolve()
    with _replacing(folder) as partial:
        dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
        config = model.config.to_json() | {"torch_dtype": dtype}
        if fp8:
            config["quantization_config"] = QUANTIZATION_CONFIG
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "do_sample": True}
        generation |= {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
        (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        if tokenizer is not None:
            for file in TOKENIZER_FILES:
                shutil.copyfile(Path(tokenizer) / file, partial / file)
        write_shards(partial, list(_parcels(model, folder, fp8)), max_shard_bytes)


def _parts(model: Model) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint by their published names, as views of the model's own."""
    tied = model.lm_head.weight is model.embed_tokens.weight
    for name, value in model.state_dict(keep_vars=True).items():
        if not (tied and name == "lm_head.weight"):
            yield from published(name, value, model.config)


class _WithoutMemory(TorchFunctionMode):
    """Makes weights on the meta device and leaves them as they are. Unlike `torch.device("meta")` it keeps real what is
    computed, the rotary frequencies (no checkpoint holds them), and does not load torch's compiler (80 MB) for them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls `func`, unless it initialises a weight."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor")
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _allocate(model: Model, dtype: torch.dtype) -> None:
    """Gives a model without memory its memory: no page of it is touched before its tensor is read."""
    lost = {name for name, buffer in model.named_buffers() if buffer.is_meta} - model.state_dict().keys()
    assert not lost, f"no checkpoint holds {lost}: compute them, rather than fill zeros or ones"
    made: dict[nn.Parameter, nn.Parameter] = {}  # a tied parameter has two names, and stays one
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if old not in made:
                made[old] = nn.Parameter(torch.empty(old.shape, dtype=dtype, device="cpu"))
            setattr(module, name, made[old])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _read_into(out: Tensor, stored: StoredTensor, scale: StoredTensor | None) -> None:
    """Fills `out`, a view of a parameter. A piece ends where a row of blocks ends."""
    if not out.dim():
        out = out.view(1)
    scales = scale.read().float() if scale is not None else None
    for first, piece in stored.pieces(BLOCK if scales is not None else 1):
        end = first + piece.shape[0]
        if scales is not None:
            piece = dequantise_blocks(piece, scales[first // BLOCK : -(-end // BLOCK)])
        out[first:end].copy_(piece)


def _parcels(model: Model, folder: Path, fp8: bool) -> Iterator[Parcel]:
    parts = list(_parts(model))
    if model.mtp is not None:
        # The published files repeat what this layer shares with the model.
        prefix = second_prediction(model.config)
        parts.append((f"{prefix}embed_tokens.weight", model.embed_tokens.weight))
        parts.append((f"{prefix}shared_head.head.weight", model.lm_head.weight))
    for name, part in parts:
        if fp8 and QUANTISED.search(name):
            yield _fp8_parcel(name, part, folder)
        else:
            yield Parcel(((name, part.dtype, tuple(part.shape)),), lambda part=part: (part,))  # type: ignore[misc]


def _fp8_parcel(name: str, weight: Tensor, folder: Path) -> Parcel:
    rows, columns = weight.shape

    def make() -> tuple[Tensor, Tensor]:
        try:
            return quantise_blocks(weight.detach(), ue8m0=True)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {name} cannot be written: {error}; save it without fp8") from error

    scale = (name + SCALE, torch.float32, block_shape(rows, columns))
    return Parcel(((name, FP8, (rows, columns)), scale), make)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends, and vanishes if the block fails."""
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there and is no model folder (it has no config.json): give another path")
    partial, old = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_quantisation(file: Path) -> None:
    quantisation = json.loads(file.read_text()).get("quantization_config")
    if quantisation is None:
        return
    if not isinstance(quantisation, dict):
        raise UnsupportedCheckpointError(f"{file}: quantization_config is {quantisation!r}, which is no object")
    for field in ("quant_method", "fmt", "weight_block_size"):
        value, expected = quantisation.get(field), QUANTIZATION_CONFIG[field]
        if value != expected and not (field == "fmt" and value is None):
            raise UnsupportedCheckpointError(
                f"{file}: quantization_config.{field} {value!r} is not supported; {expected!r} is (FP8 blocks, as "
                "DeepSeek publishes them), and so are checkpoints in bf16 or fp32"
            )


def _check(model: Model, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Raises `CheckpointError` for the first tensor of a wrong shape or dtype, else one too many, else one too few."""
    config = model.config
    expected = {name: tuple(part.shape) for name, part in _parts(model)}
    for name, shape in expected.items():
        if name in stored:
            _check_tensor(stored[name], stored.get(name + SCALE), shape)
    scales = {name + SCALE for name in expected if name in stored and stored[name].kind == "F8_E4M3"}
    unexpected = [
        tensor
        for name, tensor in stored.items()
        if not (name in expected or name in scales or is_left_out(name.removesuffix(SCALE), config))
    ]
    if unexpected:
        raise CheckpointError(_unexpected(unexpected, stored, config))
    missing = [name for name in expected if name not in stored]
    if missing:
        name = missing[0]
        where = next((file for file in (folder / INDEX, folder / SINGLE) if file.is_file()), folder)
        advice = "copy the checkpoint again"
        if name.startswith(second_prediction(config)):
            advice = (
                "the multi-token-prediction layer is there in part: copy the rest of it, or remove all tensors that "
                f"begin with {second_prediction(config)}"
            )
        fields = existence_fields(name, config)
        advice += f"; or {_look_at(fields)}" if fields else ""
        raise CheckpointError(
            f"{where}: tensor {name} of shape {list(expected[name])} is missing ({len(missing)} in all); {advice}"
        )


def _check_tensor(stored: StoredTensor, scale: StoredTensor | None, shape: tuple[int, ...]) -> None:
    name = stored.name
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.file}: {name} has shape {list(stored.shape)}, not {list(shape)} as config.json says; "
            + _look_at(shape_fields(name))
        )
    if stored.dtype == torch.float8_e8m0fnu:
        raise CheckpointError(f"{stored.file}: {name} is made of scales (F8_E8M0), not of weights; copy it again")
    if stored.dtype != FP8:
        return
    if len(shape) != 2:
        raise CheckpointError(f"{stored.file}: {name} is FP8, and only matrices can be; give it in bf16 or fp32")
    if scale is None:
        raise CheckpointError(
            f"{stored.file}: {name} is FP8 and has no scales: {name}{SCALE} is missing; copy the checkpoint again"
        )
    blocks = block_shape(*shape)
    if scale.shape != blocks or scale.dtype == FP8:
        raise CheckpointError(
            f"{scale.file}: {scale.name} has shape {list(scale.shape)} and dtype {scale.kind}, not {list(blocks)} and "
            f"F32: one scale per {BLOCK} x {BLOCK} block of {name} {list(shape)}; quantise the checkpoint again"
        )


def _unexpected(tensors: list[StoredTensor], stored: dict[str, StoredTensor], config: ModelConfig) -> str:
    tensor = tensors[0]
    advice = _look_at(existence_fields(tensor.name, config)) or "remove it, or give the config.json that belongs to it"
    weight = stored.get(tensor.name.removesuffix(SCALE))
    if weight is not None and weight is not tensor:
        advice = f"{weight.name} is {weight.kind}, not FP8, and needs no scales: remove them"
    what = f"unexpected tensor {tensor.name} of shape {list(tensor.shape)}"
    return f"{tensor.file}: {what} ({len(tensors)} in all); {advice}"


def _look_at(fields: tuple[str, ...]) -> str:
    return f"look at {', '.join(fields)} in config.json" if fields else ""
