"""A packed row is its samples: read back, seen, placed and replayed alike, each shared token once."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.rl.samples import Sample, SampleError
from baleen.training.packing import loss_entries, pack_tree


def recorded(tokens, rng=None):
    """Recordings are a function of the prefix, as a deterministic model's would be."""
    tokens = np.asarray(tokens, dtype=np.int32)
    size = len(tokens)
    experts = np.zeros((size - 1, 1, 2), dtype=np.int16)
    selected = np.full((size - 1, 2, 3), -1, dtype=np.int16)
    state = 0
    for place in range(size - 1):
        state = (state * 31 + int(tokens[place])) % 997
        experts[place, 0] = state % 7, 7 + state % 5
        chosen = sorted({(state * (i + 3)) % (place + 1) for i in range(3)})
        selected[place, :, : len(chosen)] = chosen
    sampled = np.zeros(size, dtype=np.bool_)
    sampled[size // 2 or 1 :] = True
    return Sample(tokens, sampled, np.zeros(size, dtype=np.float32), None, None, experts, selected, 0, 0.0, 0)


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12)
BUDGET = st.integers(9, 40)


@given(SEQUENCES, BUDGET)
def test_every_sample_is_read_back_once_with_its_positions(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    rows = pack_tree(samples, budget)
    assert sorted(i for row in rows for i in row.samples) == list(range(len(samples)))
    for row in rows:
        assert len(row.tokens) <= budget
        for index, path in zip(row.samples, row.row_index, strict=True):
            assert row.tokens[path].tolist() == samples[index].tokens.tolist()
            assert row.positions[path].tolist() == list(range(len(path)))


@given(SEQUENCES, BUDGET)
def test_each_distinct_prefix_of_a_row_stands_exactly_once(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    for row in pack_tree(samples, budget):
        prefixes = {tuple(sequences[i][: n + 1]) for i in row.samples for n in range(len(sequences[i]))}
        assert len(row.tokens) == len(prefixes)


@given(SEQUENCES, BUDGET)
def test_visible_by_subtree_end_means_ancestor_in_its_own_sequence(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    for row in pack_tree(samples, budget):
        size = len(row.tokens)
        ancestors = np.zeros((size, size), dtype=np.bool_)
        for path in row.row_index:
            for place, query in enumerate(path):
                ancestors[query, path[: place + 1]] = True
        query, key = np.indices((size, size))
        visible = (key <= query) & (query < row.subtree_end[key])
        assert (visible == ancestors).all()


@given(SEQUENCES, BUDGET)
def test_recordings_say_in_the_row_what_they_said_in_the_sequence(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    for row in pack_tree(samples, budget):
        for index, path in zip(row.samples, row.row_index, strict=True):
            sample = samples[index]
            forwarded = path[:-1]
            assert (row.experts[forwarded] == sample.experts).all()
            chosen = row.selected[forwarded]
            assert ((chosen == -1) == (sample.selected == -1)).all()
            depth = np.where(chosen < 0, -1, row.positions[chosen])
            assert (depth == sample.selected).all()


@given(SEQUENCES, BUDGET)
def test_every_token_selects_something_and_only_what_it_may_see(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    for row in pack_tree(samples, budget):
        query = np.arange(len(row.tokens))[:, None, None]
        chosen = row.selected
        assert (chosen[:, :, 0] >= 0).all()
        assert ((chosen < 0) | ((chosen <= query) & (query < row.subtree_end[chosen]))).all()


@given(SEQUENCES, BUDGET)
def test_every_sampled_token_is_predicted_from_the_token_before_it(sequences, budget):
    samples = [recorded(tokens) for tokens in sequences]
    for row in pack_tree(samples, budget):
        entries = loss_entries(row, samples)
        expected = [
            (path[place - 1], samples[index].tokens[place], owner, slot)
            for owner, (index, path) in enumerate(zip(row.samples, row.row_index, strict=True))
            for slot, place in enumerate(np.flatnonzero(samples[index].sampled))
        ]
        found = zip(entries.source, entries.target, entries.owner, entries.slot, strict=True)
        assert [tuple(map(int, e)) for e in found] == [tuple(map(int, e)) for e in expected]


def test_a_last_token_takes_the_recording_of_a_longer_sample_or_is_left_to_the_gate():
    short, long = recorded([1, 2]), recorded([1, 2, 3])
    (row,) = pack_tree([short, long], 10)
    assert (row.experts[:2] == long.experts).all()
    assert row.experts[2].tolist() == [[-1, -1]]
    assert row.selected[2].tolist() == [[2, -1, -1]] * 2


def test_a_small_trie_by_hand():
    samples = [recorded([1, 2, 3]), recorded([1, 5]), recorded([1, 2, 4]), recorded([1, 2, 3])]
    (row,) = pack_tree(samples, 10)
    assert row.tokens.tolist() == [1, 2, 3, 4, 5]
    assert row.positions.tolist() == [0, 1, 2, 2, 1]
    assert row.subtree_end.tolist() == [5, 4, 3, 4, 5]
    assert row.samples == (0, 3, 2, 1)
    assert [path.tolist() for path in row.row_index] == [[0, 1, 2], [0, 1, 2], [0, 1, 3], [0, 4]]


def test_samples_without_recordings_pack_without_them():
    samples = [replace(recorded([1, 2, 3]), experts=None, selected=None)]
    (row,) = pack_tree(samples, 3)
    assert row.experts is None
    assert row.selected is None
    assert pack_tree([], 3) == []


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(SampleError, match="does not fit a row of 2"):
        pack_tree([recorded([1, 2, 3])], 2)
    with pytest.raises(SampleError, match="differ in their recorded experts"):
        pack_tree([recorded([1, 2]), replace(recorded([1, 3]), experts=None)], 9)


def test_a_step_of_64_samples_of_900_tokens_packs_in_the_blink_of_an_eye():
    rng = np.random.default_rng(0)
    system = rng.integers(0, 4096, 500)
    questions = [rng.integers(0, 4096, 100) for _ in range(8)]
    sequences = [np.concatenate([system, questions[i % 8], rng.integers(0, 4096, 300)]) for i in range(64)]
    samples = [replace(recorded(tokens), experts=None, selected=None) for tokens in sequences]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        rows = pack_tree(samples, 8192)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05
    assert sum(len(row.tokens) for row in rows) < 0.4 * 64 * 900
