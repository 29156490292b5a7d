"""Repeated segments: periodic rows of different tokens, trained only where copying predicts."""

import numpy as np
import torch

from baleen.training.repeats import ALPHABET, LONGEST, ROW_TOKENS, SHORTEST, alphabet, by_frequency, repeat_batch

IDS = np.arange(8, 8 + ALPHABET)


def period(row: np.ndarray) -> int:
    return next(p for p in range(1, ROW_TOKENS) if (row[p:] == row[:-p]).all())


def test_rows_repeat_a_segment_of_different_tokens_of_the_alphabet() -> None:
    rows = repeat_batch(IDS, 0, tokens=2048).tokens.numpy()
    assert rows.shape == (2048 // ROW_TOKENS, ROW_TOKENS)
    assert set(rows.flatten()) == set(IDS)
    periods = [period(row) for row in rows]
    assert min(periods) >= SHORTEST
    assert max(periods) <= LONGEST
    assert len(set(periods)) > 5
    assert all(len(set(row)) == length for row, length in zip(rows, periods, strict=True))


def test_every_trained_token_stood_one_period_before_behind_the_same_token() -> None:
    batch = repeat_batch(IDS, 3)
    flat = batch.tokens.flatten()
    for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
        row, place = divmod(source, ROW_TOKENS)
        back = period(batch.tokens[row].numpy())
        assert flat[source + 1] == target
        assert place >= back
        assert flat[source + 1 - back] == target
        assert flat[source - back] == flat[source]


def test_the_seed_decides() -> None:
    assert torch.equal(repeat_batch(IDS, 5).tokens, repeat_batch(IDS, 5).tokens)
    assert not torch.equal(repeat_batch(IDS, 5).tokens, repeat_batch(IDS, 6).tokens)


def test_the_alphabet_grows_to_all_ids() -> None:
    every = np.arange(8, 2048)
    sizes = [len(alphabet(every, step)) for step in range(0, 900, 50)]
    assert sizes[0] == ALPHABET
    assert sizes == sorted(sizes)
    assert len(alphabet(every, 899)) == len(alphabet(every, 10**6)) == len(every)


def test_the_most_frequent_ids_come_first() -> None:
    sequences = [np.array([5, 9, 9, 2], dtype=np.int32), np.array([9, 2], dtype=np.int32)]
    assert by_frequency(sequences).tolist() == [9, 2, 5]
