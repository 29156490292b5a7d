"""Scales keep order and stay inside their frame; figures survive any finite numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.report.charts import Bar, Line, bar_chart, line_chart, raster
from baleen.report.svg import Scale, decade_ticks, round_ticks, widened

values = st.floats(-1e100, 1e100)


@given(st.lists(values, min_size=1), st.booleans())
def test_a_widened_range_holds_every_value(numbers, from_zero):
    low, high = widened(numbers, from_zero)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert low < high
    assert low - slack <= min(numbers)
    assert max(numbers) <= high + slack


@given(values, values, st.floats(0.001, 1e6))
def test_a_scale_keeps_order_and_stays_inside(first, second, span):
    scale = Scale(-span, span, 300.0, 20.0)
    low, high = sorted((first, second))
    assert 20.0 <= scale.place(high) <= scale.place(low) <= 300.0


def test_ticks_are_round():
    assert round_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert decade_ticks(1e-7, 1e-4, 5) == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4])


def test_a_scale_of_whole_numbers_has_no_tick_between_them():
    assert Scale(0, 3, 0, 100, whole=True).ticks(6) == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.floats(0, 1e100), st.floats(-1e100, 1e100)), min_size=1, max_size=80), st.booleans())
def test_any_curve_gives_well_formed_svg_without_nan(points, logarithmic):
    figure = line_chart("loss", [Line("a", sorted(points), 0)], logarithmic=logarithmic)
    ElementTree.fromstring(figure)
    assert "nan" not in figure
    assert "inf" not in figure.replace("info", "")


def test_a_long_curve_is_thinned():
    figure = line_chart("loss", [Line("a", [(float(i), float(i % 7)) for i in range(100_000)], 0)])
    assert len(figure) < 60_000


def test_a_curve_without_points_is_no_figure():
    assert line_chart("loss", [Line("a", [], 0)]) == ""


def test_hovering_a_curve_tells_every_series_value():
    figure = line_chart("loss", [Line("dense", [(1.0, 0.25)], 0), Line("sparse", [(1.0, 0.5)], 1)])
    assert "<title>step 1\ndense 0.25\nsparse 0.5</title>" in figure


def test_zeros_on_a_log_scale_lie_on_the_base_line_and_it_says_so():
    figure = line_chart("gap", [Line("a", [(0.0, 0.0), (1.0, 1e-6)], 0)], logarithmic=True)
    assert "Zeros lie on the base line" in figure


def test_a_bar_is_as_high_as_its_value_and_the_whisker_spans_its_interval():
    figure = bar_chart("pass", ["tools"], [("a", 0), ("b", 1)], [[Bar(0.5, 0.4, 0.6), Bar(1.0)]], y_range=(0.0, 1.0))
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', figure)]
    assert heights[0] == pytest.approx(heights[1] / 2, abs=0.01)
    low, high = (float(v) for v in re.search(r"M[\d.]+ ([\d.]+)V([\d.]+)", figure).groups())
    assert low - high == pytest.approx(0.2 * heights[1], abs=0.2)


def test_a_bar_that_was_not_measured_is_a_dash_not_a_zero():
    figure = bar_chart("pass", ["tools"], [("a", 0), ("b", 1)], [[Bar(0.5), Bar(None)]])
    assert figure.count("<rect") == 1
    assert ">–<" in figure


def test_a_raster_joins_cells_of_one_shade():
    figure = raster("Layer 0", [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.7, 1.0], ["a", "b"], (0, 2), 3)
    assert 'd="M0 0h2v1h-2zM2 1h1v1h-1z"' in figure
