"""The card on attention mass is not met by a model that attends evenly."""

from __future__ import annotations

import pytest

from baleen.report.headline import _beats_the_floor


@pytest.mark.parametrize(
    ("selected", "recent", "met"),
    [(0.3846, 0.3843, False), (0.72, 0.67, False), (0.78, 0.67, True), (0.79, 0.79, True)],
)
def test_a_selection_must_beat_what_needs_no_indexer(selected, recent, met):
    mass = {"selected": selected, "oracle": 0.79, "recent": recent, "random": 0.29}
    assert _beats_the_floor(mass) is met


def test_a_figure_that_was_not_measured_meets_nothing():
    assert not _beats_the_floor({"selected": 0.8, "oracle": 0.8})
