"""The parts of a figure: scales with readable ticks, and the frame that charts are drawn in.

Figures are inline SVG in CSS variables, so one file serves light and dark. Coordinates are CSS pixels at full width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baleen.report.markup import Html, element, join

Format = Callable[[float | None], str]

COLOURS = 8
"""How many series colours the style sheet defines (`--series-0` ...)."""


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels in [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False
    """Whether values between whole numbers mean nothing (steps, layers)."""

    def place(self, value: float) -> float:
        """The pixel of a value; values outside are held at the edge."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.logarithmic else (self.low, self.high)
        inner = math.log10(max(value, self.low)) if self.logarithmic else value
        share = (inner - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range, about `count` of them."""
        if self.logarithmic:
            return decade_ticks(self.low, self.high, count)
        return [tick for tick in round_ticks(self.low, self.high, count) if not self.whole or tick.is_integer()]


@dataclass(frozen=True)
class Frame:
    """The plot's rectangle inside its drawing."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float


def frame(width: float, height: float, left: float = 52, bottom: float = 38) -> Frame:
    """A frame with room for tick labels at the left and below."""
    return Frame(width, height, left, width - 12, 10, height - bottom)


def drawing(size: Frame, label: str, *children: str) -> Html:
    """The `<svg>` around a figure; `label` is what a screen reader says."""
    box = f"0 0 {size.width:g} {size.height:g}"
    return element("svg", *children, viewBox=box, role="img", aria_label=label, class_="plot")


def figure(title: str, body: str, legend: Sequence[tuple[str, int]] = (), note: str = "", wide: bool = False) -> Html:
    """A captioned figure; the legend is HTML, so that it wraps and never overlaps the plot."""
    keys = [
        element("span", element("i", style=f"background:var(--series-{colour % COLOURS})"), name, class_="key")
        for name, colour in legend
    ]
    caption = element(
        "figcaption",
        element("span", title, class_="title"),
        element("span", *keys, class_="legend") if keys else Html(),
    )
    small = element("p", note, class_="note") if note else Html()
    return element("figure", caption, body, small, class_="chart wide" if wide else "chart")


def axes(size: Frame, x: Scale | None, y: Scale, x_format: Format, y_format: Format, x_label: str = "") -> Html:
    """Horizontal grid lines with values, the base line, and the x ticks."""
    parts: list[Html] = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(element("line", x1=size.left, x2=size.right, y1=at, y2=at, class_="grid"))
        parts.append(element("text", y_format(value), x=size.left - 7, y=at + 4, class_="tick end"))
    parts.append(element("line", x1=size.left, x2=size.right, y1=size.bottom, y2=size.bottom, class_="base"))
    for value in x.ticks(6) if x else []:
        at = x.place(value) if x else 0.0
        anchor = "tick end" if at > size.right - 14 else "tick middle"
        parts.append(element("text", x_format(value), x=min(at, size.right), y=size.bottom + 16, class_=anchor))
    if x_label:
        middle = (size.left + size.right) / 2
        parts.append(element("text", x_label, x=middle, y=size.height - 5, class_="label middle"))
    return join(parts)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    step = _round_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def decade_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten within [low, high], thinned to `count`; with 2 and 5 between where there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / count))
    powers = [10.0**power for power in range(first, last + 1, stride)]
    if len(powers) >= 3:
        return powers
    exponents = range(first - 1, last + 1)
    return [digit * 10.0**power for power in exponents for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def widened(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """A range around the values that ends on round numbers and is never empty."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if level(low, high):
        pad = abs(high) * 0.1 or 1.0
        low, high = (low if from_zero and low == 0 else low - pad), high + pad
    step = _round_step(high - low, 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def level(low: float, high: float) -> bool:
    """Whether two values are too near each other to be told apart on an axis."""
    return high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-90)


def _round_step(span: float, count: int) -> float:
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
