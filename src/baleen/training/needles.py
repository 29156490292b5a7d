"""Needles in a haystack: a value named once in a long text and asked for at its end.

Pre-training plants them in a share of its text rows, so that there is something far away worth attending to; the
evaluation plants its own, with other names and values, at stated depths.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from baleen.chat.tokenizer import Tokenizer

SYLLABLES = ("ka", "lo", "mi", "tu", "re", "so", "na", "pe")


@dataclass(frozen=True)
class Needle:
    """Token ids: `statement` stands somewhere in the text, `question` at its end, `answer` is what must follow."""

    statement: list[int]
    question: list[int]
    answer: list[int]


def make_needle(tokenizer: Tokenizer, rng: random.Random) -> Needle:
    """A name of three syllables and a value of three digits."""
    name = "".join(rng.choice(SYLLABLES) for _ in range(3))
    value = str(rng.randrange(100, 1000))
    question = tokenizer.encode(f"\n{name}_limit = ", special=False)
    statement = tokenizer.encode(f"\n{name}_limit = {value}\n", special=False)
    return Needle(statement, question, tokenizer.encode(value, special=False))


def plant(row: list[int], needle: Needle, depth: float) -> list[int]:
    """The row with the needle at `depth` (0 start, 1 end) and question and answer last; as long as before."""
    text = row[: len(row) - len(needle.statement) - len(needle.question) - len(needle.answer)]
    place = int(len(text) * depth)
    return [*text[:place], *needle.statement, *text[place:], *needle.question, *needle.answer]


def plant_in_rows(rows: np.ndarray, share: float, tokenizer: Tokenizer, seed: int) -> np.ndarray:
    """Needles at random depths in the first `share` of rows [B, S]."""
    rng = random.Random(seed)
    planted = rows.copy()
    for index in range(round(share * len(rows))):
        planted[index] = plant(rows[index].tolist(), make_needle(tokenizer, rng), rng.random())
    return planted
