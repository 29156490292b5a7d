"""safetensors files, a piece at a time: what stands where is read first, then each tensor's bytes when they are wanted.

A file is 8 bytes of header length (little endian), a JSON header `{name: {dtype, shape, data_offsets}}`, and the bytes
of the tensors. Files are read with plain reads at the header's offsets: pages of a mapped file would count as this
process' memory, and a checkpoint must not cost more than the model it becomes. Several files are joined by
`model.safetensors.index.json`; where the index and the files disagree, nothing is guessed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from baleen.model.config import UnsupportedCheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

PIECE_BYTES = 1 << 18
"""How much of a tensor is read before it is copied into place."""

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""The header's names of the dtypes that weights and scales come in."""

NAMES = {dtype: name for name, dtype in FLOATING.items()}

AGAIN = "copy it again"


class CheckpointError(ValueError):
    """A checkpoint's files, index and config do not fit each other. Names the tensor, the file, and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from byte `start` of `file` on."""

    name: str
    file: Path
    kind: str
    """The dtype by its name in the header: not every one can be read."""

    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Raises `CheckpointError` for whatever is not made of floating-point numbers."""
        if self.kind not in FLOATING:
            raise CheckpointError(
                f"{self.file}: {self.name} is of dtype {self.kind}, not of a floating-point one; "
                "give the bf16, fp32 or FP8 (128 x 128 blocks) form of this checkpoint"
            )
        return FLOATING[self.kind]

    def pieces(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """The tensor along its first dim in pieces of about `PIECE_BYTES`: (first row, [rows, ...]); a scalar is one
        row. All pieces but the last have a multiple of `multiple` rows. Raises `CheckpointError` when the file ends."""
        shape = self.shape or (1,)
        row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        step = max(PIECE_BYTES // max(row_bytes, 1) // multiple, 1) * multiple
        with self.file.open("rb", buffering=0) as handle:
            handle.seek(self.start)
            for first in range(0, shape[0], step):
                rows = min(step, shape[0] - first)
                buffer = torch.empty(rows * row_bytes, dtype=torch.uint8)
                if not _fill(handle, buffer.numpy().data):
                    raise CheckpointError(f"{self.file} ends within tensor {self.name}: it was truncated; {AGAIN}")
                yield first, buffer.view(self.dtype).view(rows, *shape[1:])

    def read(self) -> Tensor:
        """The whole tensor."""
        return torch.cat([piece for _, piece in self.pieces()]).view(self.shape)


@dataclass(frozen=True)
class Parcel:
    """Tensors that are made together when their turn to be written comes, and stand in one file."""

    specs: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    """Name, dtype and shape of each."""

    make: Callable[[], tuple[Tensor, ...]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in self.specs)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by name: those of the index's files, or of every .safetensors file without an index.

    Only headers are read. Raises `CheckpointError` for a file that is missing, truncated or no safetensors file, for a
    tensor in two files, and for an index that says otherwise than the files; `UnsupportedCheckpointError` without any.
    """
    index = folder / INDEX
    places = _read_index(index) if index.is_file() else None
    files = sorted(folder.glob("*.safetensors")) if places is None else [folder / f for f in sorted({*places.values()})]
    if not files:
        raise UnsupportedCheckpointError(f"{folder} has no .safetensors file: give a folder with the model's weights")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for stored in _read_header(file):
            if stored.name in tensors:
                raise CheckpointError(
                    f"{file}: tensor {stored.name} is in {tensors[stored.name].file.name} as well; "
                    "remove the file that does not belong to this checkpoint"
                )
            tensors[stored.name] = stored
    if places is not None:
        _compare(index, places, tensors)
    return tensors


def write_shards(folder: Path, parcels: list[Parcel], max_shard_bytes: int) -> None:
    """Writes `model.safetensors`, or several files and their index where that would be larger than `max_shard_bytes`.

    One parcel is made, written and dropped at a time. A parcel larger than a file may be has a file for itself.
    """
    shards: list[list[Parcel]] = [[]]
    filled = 0
    for parcel in parcels:
        if shards[-1] and filled + parcel.size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(parcel)
        filled += parcel.size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard)
        places |= {name: file for parcel in shard for name, _, _ in parcel.specs}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(parcel.size for parcel in parcels)}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(file: Path, parcels: list[Parcel]) -> None:
    # Wide dtypes first: every tensor then starts at a multiple of its item size, which readers rely on.
    specs = sorted((spec for parcel in parcels for spec in parcel.specs), key=lambda spec: -spec[1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, dtype, shape in specs:
        offsets[name], end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for parcel in parcels:
            for (name, dtype, shape), tensor in zip(parcel.specs, parcel.make(), strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
                handle.seek(8 + len(encoded) + offsets[name])
                handle.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        handle.flush()
        os.fsync(handle.fileno())  # a full disk may say so only now


def _read_header(file: Path) -> Iterator[StoredTensor]:
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{size} bytes are less than its header")
            entries = _entries(json.loads(handle.read(length)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); is it truncated? {AGAIN}") from error
    previous = 0
    for name, kind, shape, first, end in entries:
        if first < previous:
            raise CheckpointError(
                f"{file} cannot be read: its tensor {name} begins at byte {8 + length + first}, where something else "
                f"stands until byte {8 + length + previous}; {AGAIN}"
            )
        previous = end
        if 8 + length + end > size:
            raise CheckpointError(
                f"{file} cannot be read: it ends at byte {size}, and its tensor {name} at byte {8 + length + end}; "
                f"it was truncated; {AGAIN}"
            )
        stored = StoredTensor(name, file, kind, shape, 8 + length + first, end - first)
        if kind in FLOATING and stored.size != math.prod(shape) * stored.dtype.itemsize:
            raise CheckpointError(
                f"{file} cannot be read: its tensor {name} has {stored.size} bytes, which is not {list(shape)} of "
                f"{kind}; {AGAIN}"
            )
        yield stored


def _entries(header: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, first byte and end of each tensor, in the order of their bytes. Raises what Python raises for
    a header of another form."""
    entries = []
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = map(int, entry["data_offsets"])
            entries.append((name, str(entry["dtype"]), tuple(map(int, entry["shape"])), first, end))
    return sorted(entries, key=lambda entry: entry[3:])


def _read_index(index: Path) -> dict[str, str]:
    """{tensor: file name}."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        if not isinstance(places, dict):
            raise ValueError("its weight_map is no object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read ({error!r}); {AGAIN}") from error
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name} is said to be in {file!r}, which is no file name; {AGAIN}")
        if not (index.parent / file).is_file():
            raise CheckpointError(
                f"{index}: tensor {name} is said to be in {file}, and {index.parent / file} does not exist; "
                "copy that file as well"
            )
    return places


def _compare(index: Path, places: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != file:
            actual = f"it is in {tensors[name].file.name}" if name in tensors else "no file of the index holds it"
            raise CheckpointError(
                f"{index}: tensor {name} is said to be in {index.parent / file}, but {actual}; "
                "copy the index and its files again, from one checkpoint"
            )
    for name, stored in tensors.items():
        if name not in places:
            raise CheckpointError(
                f"{stored.file}: tensor {name} is not in {index}; "
                "copy the index and its files again, from one checkpoint"
            )


def _fill(handle: IO[bytes], view: memoryview) -> bool:
    """Whether the file had enough bytes."""
    while view:
        count = handle.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True
