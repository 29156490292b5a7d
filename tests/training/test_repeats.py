"""Repeated segments: periodic rows, trained only where copying predicts."""

import numpy as np
import torch

from baleen.training.repeats import ALPHABET, LONGEST, ROW_TOKENS, SHORTEST, alphabet, repeat_batch

IDS = range(8, 8 + ALPHABET)


def period(row: np.ndarray) -> int:
    return next(p for p in range(1, ROW_TOKENS) if (row[p:] == row[:-p]).all())


def test_rows_repeat_a_segment_of_the_alphabet() -> None:
    rows = repeat_batch(2048, IDS, 0).tokens.numpy()
    assert rows.shape == (2048 // ROW_TOKENS, ROW_TOKENS)
    assert rows.min() >= IDS.start
    assert rows.max() < IDS.stop
    periods = {period(row) for row in rows}
    assert min(periods) >= SHORTEST
    assert max(periods) <= LONGEST
    assert len(periods) > 5


def test_every_trained_token_stood_one_period_before_behind_the_same_token() -> None:
    batch = repeat_batch(1024, IDS, 3)
    flat = batch.tokens.flatten()
    for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
        row, place = divmod(source, ROW_TOKENS)
        back = period(batch.tokens[row].numpy())
        assert flat[source + 1] == target
        assert place >= back
        assert flat[source + 1 - back] == target
        assert flat[source - back] == flat[source]


def test_the_seed_decides() -> None:
    assert torch.equal(repeat_batch(512, IDS, 5).tokens, repeat_batch(512, IDS, 5).tokens)
    assert not torch.equal(repeat_batch(512, IDS, 5).tokens, repeat_batch(512, IDS, 6).tokens)


def test_the_alphabet_grows_to_the_whole_vocabulary() -> None:
    every = range(8, 2048)
    sizes = [len(alphabet(every, step)) for step in range(0, 900, 50)]
    assert sizes[0] == ALPHABET
    assert sizes == sorted(sizes)
    assert alphabet(every, 899) == every
    assert alphabet(every, 10**6) == every
