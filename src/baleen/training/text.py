"""The corpus: documents from wherever the recipe points, tokens packed end to end, a held-out part for validation.

The default needs no download and is real text: the running interpreter's own standard library, found through
`sysconfig`. Otherwise a folder, `.txt`, `.jsonl` (field `text`), `.parquet` (column `text`) or the name of a Hugging
Face data set.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baleen.chat.tokenizer import Tokenizer

HELD_OUT = 20
"""Every 20th document is for validation."""


class CorpusError(ValueError):
    """The corpus cannot be read; the message says what was looked for and what can be given."""


def documents(corpus: str | None, max_bytes: int) -> list[str]:
    """The corpus' documents in a fixed order, about `max_bytes` of UTF-8 in all."""
    kept: list[str] = []
    size = 0
    for text in _read(corpus):
        if not text.strip():
            continue
        kept.append(text)
        size += len(text.encode("utf-8", "ignore"))
        if size >= max_bytes:
            break
    if len(kept) < HELD_OUT:
        raise CorpusError(
            f"corpus {corpus or 'standard library'} holds {len(kept)} documents; at least {HELD_OUT} are needed "
            "so that "
            "some can be held out: give more text, or text in more files"
        )
    return kept


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Training and validation documents."""
    return [t for i, t in enumerate(texts) if i % HELD_OUT], texts[::HELD_OUT]


def tokenise(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one stream of ids [N] (uint32), each opened by the beginning-of-sentence token."""
    parts: list[int] = []
    for text in texts:
        parts.append(tokenizer.bos_id)
        parts.extend(tokenizer.encode(text, special=False))
    return np.asarray(parts, dtype=np.uint32)


def rows(stream: np.ndarray, count: int, length: int, seed: int) -> np.ndarray:
    """`count` rows [count, length] from random places of the stream, by seed."""
    if len(stream) <= length:
        raise CorpusError(f"the corpus has {len(stream)} tokens, fewer than one sequence of {length}: give more text")
    starts = np.random.default_rng(seed).integers(0, len(stream) - length, size=count)
    return np.stack([stream[start : start + length] for start in starts])


def _read(corpus: str | None) -> Iterator[str]:
    if corpus is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}
        files = [f for f in folder.rglob("*.py") if not skipped & set(f.relative_to(folder).parts)]
        yield from _shuffled_files(files)
        return
    path = Path(corpus)
    if path.is_dir():
        yield from _shuffled_files([f for f in path.rglob("*") if f.suffix in (".txt", ".md", ".py", ".rst")])
    elif path.suffix == ".parquet" and path.is_file():
        from pyarrow.parquet import ParquetFile

        for batch in ParquetFile(path).iter_batches(columns=["text"]):
            yield from batch.column("text").to_pylist()
    elif path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file if line.strip())
    elif path.is_file():
        yield from path.read_text(encoding="utf-8", errors="replace").split("\n\n")
    elif path.suffix or path.is_absolute() or corpus.startswith("."):
        raise CorpusError(
            f"corpus {corpus!r} does not exist; give a folder, .txt, .jsonl, .parquet or a data set's name"
        )
    else:
        yield from _hub_dataset(corpus)


def _shuffled_files(files: list[Path]) -> Iterator[str]:
    order = np.random.default_rng(0).permutation(len(files))
    ordered = sorted(files)
    for index in order:
        yield ordered[index].read_text(encoding="utf-8", errors="ignore")


def _hub_dataset(name: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise CorpusError(
            f"corpus {name!r} is no file; for Hugging Face data sets: pip install 'baleen[corpus]'"
        ) from error
    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:
        raise CorpusError(f"corpus {name!r} is neither a file nor a data set that can be loaded: {error}") from error
    yield from (row["text"] for row in stream)
